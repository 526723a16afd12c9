"""What one rank does from start to end."""
