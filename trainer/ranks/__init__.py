"""What ranks agree on: rendezvous, preflight, stopping, equal replicas."""
