"""Warm processes: a parent imports what they need once, and forks each. Python's own library only."""
