"""The service's files on the storage: those of attempts, code packages, and the marker of the installation."""
