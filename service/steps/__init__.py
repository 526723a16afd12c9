"""What one tick of the reconciler does, a file for each part of it."""
