"""Applies an exported model to files of the user's, where only the export is. May import trainer.data.volumes,
trainer.export and the tasks of trainer.training. `syncnorm predict` runs `python -m syncnorm.trainer.prediction`."""
