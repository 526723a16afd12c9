"""Tells from a driver's error whether the database is unavailable, or our SQL is wrong. Pure."""

from __future__ import annotations

import sqlalchemy as sa

_ACCOUNT = "refuses the account of the service"
_SQLITE = {
    3: "may not be opened",
    5: "is locked",
    6: "is locked",
    8: "is read-only",
    10: "can't be read or written",
    11: "is damaged",
    13: "is full",
    14: "can't be opened",
    26: "is no SQLite database",
}
"""By primary result code (sqlite.org/rescode.html)."""
_POSTGRES = {
    "08": "can't be reached",
    "25006": "is read-only",
    "28": _ACCOUNT,
    "3D": "does not exist",
    "40": "is busy with the same rows",
    "53100": "is full",
    "53300": "has no connection left",
    "53": "is out of resources",
    "55P03": "is locked",
    "57": "is shutting down or ended the call",
    "58": "can't read or write its files",
    "XX001": "is damaged",
    "XX002": "is damaged",
}
"""By SQLSTATE, or its class (postgresql.org/docs/current/errcodes-appendix.html)."""
_REFUSALS = ("authentication failed", "no pg_hba.conf entry", "permission denied for database")
"""In the text of a connection that PostgreSQL refused. psycopg gives it no SQLSTATE."""
_FIXES = {
    _ACCOUNT: (
        "Correct the role or its password in SYNCNORM_DATABASE_URL, or in the passfile that it names. "
        "`docker compose up -d --force-recreate migrate` gives the role the password of deploy/secrets."
    ),
    "is full": "Free some space.",
    "is read-only": "Point SYNCNORM_DATABASE_URL to the primary, or make it writable.",
    "is damaged": "Restore a backup.",
    "is no SQLite database": "Restore a backup, or move the file away to start with an empty one.",
}
_RETRY = "Nothing was changed; try again in a moment."


def unavailability(error: BaseException) -> str | None:
    """Why the database is unavailable, with what to do; None if the statement is at fault."""
    if isinstance(error, sa.exc.TimeoutError):
        return f"has no connection left. {_RETRY}"
    if not isinstance(error, sa.exc.DBAPIError):
        return None
    why = _why(error)
    return None if why is None else f"{why} ({_first_line(error)}). {_FIXES.get(why, _RETRY)}"


def _why(error: sa.exc.DBAPIError) -> str | None:
    code = getattr(error.orig, "sqlite_errorcode", None)
    if code is not None:
        return _SQLITE.get(code & 0xFF)
    state = getattr(error.orig, "sqlstate", None)
    if state:
        return _POSTGRES.get(state) or _POSTGRES.get(state[:2])
    if any(refusal in str(error.orig) for refusal in _REFUSALS):
        return _ACCOUNT
    gone = error.connection_invalidated or isinstance(error, sa.exc.OperationalError | sa.exc.InterfaceError)
    return "can't be reached" if gone else None


def _first_line(error: sa.exc.DBAPIError) -> str:
    return (str(error.orig).strip() or type(error.orig).__name__).splitlines()[0][:200]
