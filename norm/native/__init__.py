"""Kernels in C for CPUs, built at first use where there is a compiler."""
