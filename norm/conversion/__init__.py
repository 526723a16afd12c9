"""Turns the normalization of a model into another kind, and back."""
