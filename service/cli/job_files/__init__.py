"""Job and study files, and values of theirs that are set on the command line."""
