"""Benchmarks: one file a figure, each a ratio against a peer measured in the same run. `make bench` runs them all."""
