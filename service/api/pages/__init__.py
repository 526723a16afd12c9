"""Pages for people: the overview at /, one for each job, and signing in. They only read, by the API's own queries.

Rendered by the server, so they need no script. May import the rest of the API; nothing but `app.py` imports them.
"""
