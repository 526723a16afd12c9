"""What a rank reports: logs, progress and metrics, to the service and MLflow, without secrets."""
