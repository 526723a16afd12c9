"""What a rank tells: logs, progress and metrics to the service and MLflow, without secrets."""
