"""Built-in models and data sets: names and arguments. Free of torch, so that the service can check a spec."""
