"""Poison and victim: whatever one job, answer, row or file is fed, it ends with its reason, and the job of somebody
else beside it starts and succeeds."""
