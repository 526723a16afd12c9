"""Trained weights that a job starts from. Knows norm, storage, checkpoints and MLflow; training knows nothing of it."""
