"""Statistics of batch normalizations at the end of training: of the whole training set, the better ones, pictures."""
