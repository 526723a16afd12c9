"""HTTP rules for every request: methods, queries, bodies, entity tags, pages, errors and foreign origins."""
