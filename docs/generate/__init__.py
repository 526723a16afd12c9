"""Python code of the documentation: reference pages written from the code, and a hook of the site's build."""
