"""Files on a folder or any fsspec URL: atomic writes, checkpoints' folders, mirrors, and their errors."""
