"""Applies trained networks: an exported model to files of the user's, where only the export is, and the network of a
job to its validation volumes, for pictures. May import trainer.data, trainer.export and the tasks of trainer.training.
`syncnorm predict` runs `python -m syncnorm.trainer.prediction`."""
