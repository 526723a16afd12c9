"""What holds for every request: methods, queries, bodies, entity tags, pages, errors, foreign origins."""
