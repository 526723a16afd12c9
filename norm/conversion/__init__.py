"""Converts the normalization of a model to another kind, and back."""
