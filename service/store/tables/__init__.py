"""SQL by table. Each part keeps to its own tables; `Store` puts them together."""
