"""What the service reads from and writes to the storage: attempts' files, packages, the marker of the installation."""
