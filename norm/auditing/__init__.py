"""Findings about the normalization of a model. Named so because `norm.audit` is the function."""
