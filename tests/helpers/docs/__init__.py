"""The commands of the documentation: finds them on a page, and runs them as a reader would."""
