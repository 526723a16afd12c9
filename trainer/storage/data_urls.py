"""Which URLs specs may read data from: those under the prefixes that an operator allows. Pure.

Without this, a user could have the workers request any address, including the metadata service of a cloud.
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import SplitResult, urlsplit

DEFAULT = ("s3://", "gs://", "gcs://", "az://", "abfs://")
"""Object stores, opened with the workers' own credentials; no web servers, no files by URL."""


def problem(url: str, allowed: Sequence[str]) -> str | None:
    """What is wrong with a URL of a spec; None if it lies under one of the prefixes.

    A prefix names a scheme (s3://), a host (https://data.example.org) or a path below one.
    """
    try:
        parsed = urlsplit(url)
        _ = parsed.port
    except ValueError as error:
        return f"must be an address: {error}"
    faults = {
        "must not chain addresses with '::'": "::" in url,
        "must be a plain address: ASCII, without spaces, escapes, query or fragment": not _is_plain(url),
        "must not name a user": "@" in parsed.netloc,
        "must not contain '..'": ".." in parsed.path.split("/"),
        _elsewhere(allowed): not is_under(url, allowed),
    }
    return next((text for text, is_so in faults.items() if is_so), None)


def redirect_problem(url: str, allowed: Sequence[str]) -> str | None:
    """The same of an address that a server redirects to, which may have a query."""
    return None if is_under(url, allowed) else _elsewhere(allowed)


def _elsewhere(allowed: Sequence[str]) -> str:
    return f"must begin with one of {', '.join(allowed)}; an operator can add others with SYNCNORM_DATA_URLS"


def is_under(url: str, allowed: Sequence[str]) -> bool:
    parsed = urlsplit(url)
    return any(_lies_under(parsed, urlsplit(prefix)) for prefix in allowed)


def _is_plain(url: str) -> bool:
    return url.isascii() and url.isprintable() and not any(char in url for char in " \\%#?")


def _lies_under(url: SplitResult, prefix: SplitResult) -> bool:
    if url.scheme != prefix.scheme or not url.netloc:
        return False
    if not prefix.netloc:
        return True
    path = prefix.path.rstrip("/")
    return url.netloc.lower() == prefix.netloc.lower() and (url.path == path or url.path.startswith(f"{path}/"))
