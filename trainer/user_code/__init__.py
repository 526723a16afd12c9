"""The user's package and classes, imported by path."""
