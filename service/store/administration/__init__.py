"""Tables of the installation itself: who may do what, who acts now, what was done, and what is kept for how long."""
