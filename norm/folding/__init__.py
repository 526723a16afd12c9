"""Folds normalization in eval mode into the neighbouring layers."""
