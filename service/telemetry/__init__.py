"""What an operator reads: logs and Prometheus metrics."""
