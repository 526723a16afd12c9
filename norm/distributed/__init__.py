"""Exchange between the workers of a process group: collectives, groups, transports and their time-outs."""
