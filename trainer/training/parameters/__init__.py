"""Which parameters are trained, and how: what is frozen and until when, and the groups of the optimizer. Knows the
contract and `norm`."""
