"""Background loops, their health, and how outages are logged."""
