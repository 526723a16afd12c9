"""Normalization by statistics of each sample. May import the rest of backends."""
