"""Callbacks around the training step, one for each concern. None changes what is learned."""
