"""A look into the processes of a running job."""
