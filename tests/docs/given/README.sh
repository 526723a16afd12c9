cp examples/digits-sync-batch.yaml job.yaml
