"""k tiles as one picture: their forwards run in lock-step and meet at each normalization that takes statistics of the
sample. It may import lockstep, accumulation, layers and statistics."""
