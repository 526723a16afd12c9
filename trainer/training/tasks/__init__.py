"""Tasks of plain networks: loss and scores, exact over workers and uneven batches. May import trainer.data and what it
builds on."""
