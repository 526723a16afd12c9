"""Statistics of layers: moments and how they combine, population statistics, snapshots."""
