"""What ranks agree on with each other: rendezvous, preflight, stopping, equal replicas."""
