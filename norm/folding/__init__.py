"""Folds normalization in evaluation into the layers beside it."""
