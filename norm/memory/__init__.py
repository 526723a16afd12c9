"""Keeps less for backward: recomputes what is cheap, drops what no gradient needs. Imports norm.torch_compat only."""
