"""Files in a folder or under any fsspec URL: atomic writes, folders of attempts, mirrors, and their errors."""
