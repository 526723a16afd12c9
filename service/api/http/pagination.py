"""Opaque cursors: the place after which a list continues, valid for that list only."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from typing import Annotated, Any

from fastapi import Query

from syncnorm.service.api.http.errors import ApiError

_FORM = "v2"
LONGEST = 600
Cursor = Annotated[
    str | None,
    Query(max_length=LONGEST, description="next_cursor of the page before. Default: the first page."),
]


def list_id(name: str, /, **chosen: Any) -> str:
    """Identifies a list. chosen: filters and order, since a place in one list means nothing in another."""
    text = json.dumps([name, chosen], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def encode(listing: str, *position: str | int | None) -> str:
    text = json.dumps([_FORM, listing, *position], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode(listing: str, cursor: str, *types: type | tuple[type, ...]) -> list[Any]:
    """The place, with these types. Raises: ApiError 422 for a cursor that this list never returned."""
    try:
        made = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (binascii.Error, ValueError, RecursionError):
        made = None
    if not isinstance(made, list) or len(made) != 2 + len(types) or made[0] != _FORM:
        raise invalid_cursor()
    if made[1] != listing:
        raise invalid_cursor("The cursor belongs to a list with other filters or another sort. Start again without it.")
    position = made[2:]
    if not all(_fits(value, kind) for value, kind in zip(position, types, strict=True)):
        raise invalid_cursor()
    return position


def _fits(value: Any, kind: type | tuple[type, ...]) -> bool:
    if not isinstance(value, kind) or isinstance(value, bool):
        return False
    number: Any = value
    return value.isprintable() if isinstance(value, str) else value is None or abs(number) < 2**63


def invalid_cursor(
    detail: str = "The cursor is not one that this service returned. Start again without it.",
) -> ApiError:
    return ApiError(422, "invalid_cursor", detail)
