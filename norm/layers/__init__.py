"""Every normalization as a layer of torch. May import norm.statistics, norm.distributed and norm.backends."""
