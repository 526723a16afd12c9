"""What a run of MLflow knows besides metrics of training: the use of the machines, tags and datasets."""
