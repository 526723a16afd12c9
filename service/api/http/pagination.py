"""Opaque cursors: the place behind which a list goes on, good for that list alone."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from typing import Any

from syncnorm.service.api.http.errors import ApiError

_FORM = "v2"
LONGEST = 600


def list_id(name: str, /, **chosen: Any) -> str:
    """Tells lists apart. chosen: filters and order, for a place in one list is no place in another."""
    text = json.dumps([name, chosen], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def encode(listing: str, *position: str | int | None) -> str:
    text = json.dumps([_FORM, listing, *position], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode(listing: str, cursor: str, *types: type | tuple[type, ...]) -> list[Any]:
    """The place, of these types. Raises: ApiError 422 for what this list never gave out."""
    try:
        made = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (binascii.Error, ValueError, RecursionError):
        made = None
    if not isinstance(made, list) or len(made) != 2 + len(types) or made[0] != _FORM:
        raise invalid_cursor()
    if made[1] != listing:
        raise invalid_cursor("The cursor is of another list: other filters or another sort. Begin again without it.")
    position = made[2:]
    if not all(_fits(value, kind) for value, kind in zip(position, types, strict=True)):
        raise invalid_cursor()
    return position


def _fits(value: Any, kind: type | tuple[type, ...]) -> bool:
    if not isinstance(value, kind) or isinstance(value, bool):
        return False
    number: Any = value
    return value.isprintable() if isinstance(value, str) else value is None or abs(number) < 2**63


def invalid_cursor(detail: str = "The cursor is not one this service gave out. Begin again without it.") -> ApiError:
    return ApiError(422, "invalid_cursor", detail)
