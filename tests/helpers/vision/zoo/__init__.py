"""Architectures of other libraries, and what is checked of each with every kind of normalization."""
