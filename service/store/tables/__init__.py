"""Tables of jobs and of what belongs to them. Methods whose first argument is a connection join their caller's
transaction; all others are a transaction of their own."""
