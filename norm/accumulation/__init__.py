"""k micro-batches as one batch: their forwards run in lock-step and meet at each normalization. It may import lockstep,
layers, backends, statistics and distributed."""
