"""What a job gives: its checkpoints, and the files it has published."""
