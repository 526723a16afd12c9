"""What a plan says of a network that is built: its layers, its conversion, and what holds for the job."""
