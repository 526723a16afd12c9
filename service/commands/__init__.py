"""The command line, a file a family of verbs; `service.cli` puts them together."""
