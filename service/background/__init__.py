"""Background loops, their health, and what is logged of outages."""
