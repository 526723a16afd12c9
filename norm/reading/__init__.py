"""Reads a model without changing it: its normalization layers, the activations next to them, and who reads whom."""
