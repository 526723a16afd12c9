"""Adapters to the systems outside: Ray, MLflow, webhooks, secrets, and the process that inspects models."""
