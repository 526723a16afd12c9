"""What the service and the trainer agree on: spec, plan, messages, failures. Knows neither torch nor Lightning."""
