"""The process of one attempt: starts the workers, waits, writes result.json last."""
