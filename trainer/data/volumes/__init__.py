"""Volumes and their masks in NIfTI files: read, checked, brought to one grid, kept, and cut into patches. May import
trainer.data's own files, trainer.contract and trainer.storage. nibabel and SciPy are imported where they are used."""
