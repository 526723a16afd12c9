"""One session on a machine with a GPU: what to run there, in which order, and what came out."""
