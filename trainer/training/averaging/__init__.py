"""The average of the weights over training, and the statistics of normalization that belong to it. Knows the contract,
`norm` and how population statistics are computed."""
