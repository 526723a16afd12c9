"""A user's LightningDataModule and its loaders."""
