"""Which of several media types a client wants most (RFC 9110, section 12.5.1)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from fastapi import Request

from syncnorm.service.api.http.errors import ApiError


def wanted(request: Request, offers: Sequence[str]) -> str:
    """The offer that the request's Accept prefers; of equals the first.

    Raises: ApiError 406 if it takes none of them.
    """
    accept = ", ".join(request.headers.getlist("accept"))
    found = choose(accept, offers)
    if found is None:
        detail = f"Accept must take one of {', '.join(offers)}; got {accept[:200]!r}."
        raise ApiError(406, "not_acceptable", detail, extra={"available": list(offers)})
    return found


def choose(accept: str, offers: Sequence[str]) -> str | None:
    """The offer with the highest quality; None if all are refused. An empty Accept takes anything.

    >>> choose("text/*;q=0.5, application/x-ndjson", ["application/json", "text/plain", "application/x-ndjson"])
    'application/x-ndjson'
    >>> choose("image/*", ["application/json"])
    """
    ranges = [_range(item) for item in accept.split(",") if item.strip()] or [("*/*", 1.0)]
    qualities = [(_quality(offer, ranges), offer) for offer in offers]
    best = max(quality for quality, _ in qualities)
    return next((offer for quality, offer in qualities if quality == best), None) if best > 0 else None


def _range(item: str) -> tuple[str, float]:
    """(media range, q). Other parameters, such as charset, are no part of the choice."""
    name, *parameters = (part.strip().lower() for part in item.split(";"))
    quality = next((part[2:].strip() for part in parameters if part.startswith("q=")), "1")
    is_number = re.fullmatch(r"[01](\.[0-9]{0,3})?|\.[0-9]{1,3}", quality)
    return ("*/*" if name == "*" else name), min(float(quality), 1.0) if is_number else 0.0


def _quality(offer: str, ranges: Sequence[tuple[str, float]]) -> float:
    """That of the most specific range which holds the offer."""
    for name in (offer, f"{offer.partition('/')[0]}/*", "*/*"):
        if found := [quality for given, quality in ranges if given == name]:
            return max(found)
    return 0.0
