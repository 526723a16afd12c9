"""Pictures as numbers and bytes, of whatever a module may log."""
