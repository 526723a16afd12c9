"""Later exports of finished jobs, and the decision about the next step of one. Pure."""
