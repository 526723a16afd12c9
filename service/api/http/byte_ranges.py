"""Which part of a file is asked for with Range (RFC 9110, section 14). Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

_RANGE = re.compile(r"\s*bytes\s*=\s*(?:([0-9]{1,19})\s*-\s*([0-9]{1,19})?|-\s*([0-9]{1,19}))\s*", re.IGNORECASE)


@dataclass(frozen=True)
class ByteRange:
    """The bytes from `start` up to `end`, which is not among them."""

    start: int
    end: int


class UnsatisfiableError(ValueError):
    """The range begins behind the end of the file."""


def requested(header: str | None, if_range: str | None, tag: str, size: int) -> ByteRange | None:
    """The one part that is asked for; None: the whole file, as for several parts, another unit, or an If-Range that
    names another version.

    Raises: UnsatisfiableError.

    >>> requested("bytes=2-", None, '"v1"', 10)
    ByteRange(start=2, end=10)
    >>> requested("bytes=-3", '"v1"', '"v1"', 10)
    ByteRange(start=7, end=10)
    """
    found = _RANGE.fullmatch(header) if header is not None else None
    # A date never matches: the files have none.
    if found is None or (if_range is not None and if_range.strip() != tag):
        return None
    first, last, suffix = found.groups()
    if first is None:
        start, end = max(size - int(suffix), 0), size
    else:
        start, end = int(first), size if last is None else min(int(last) + 1, size)
        if last is not None and int(last) < start:
            return None
    if start >= size or (first is None and int(suffix) == 0):
        raise UnsatisfiableError(f"Range must begin within the {size} bytes of the file, got {header}.")
    return ByteRange(start, end)
