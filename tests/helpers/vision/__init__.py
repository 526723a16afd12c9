"""LightningModules and data modules for images, boxes and volumes, as people write them; uploaded as they are."""
