"""Ports to what lies outside: Ray, MLflow, storage, webhooks, secrets, uploaded code."""
