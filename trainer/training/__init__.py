"""Training proper: the module, its optimizer and schedule, its metrics, its checkpoints."""
