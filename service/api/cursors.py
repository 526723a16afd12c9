"""Opaque cursors: the key behind which a list goes on."""

from __future__ import annotations

import base64
import binascii

from service.errors import ApiError


def encode(key: str) -> str:
    return base64.urlsafe_b64encode(f"v1:{key}".encode()).decode().rstrip("=")


def decode(cursor: str) -> str:
    """Raises: ApiError 422 for what no list ever gave out."""
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode("ascii")
    except (binascii.Error, ValueError):
        text = ""
    version, _, key = text.partition(":")
    if version != "v1" or not key:
        raise ApiError(422, "invalid_cursor", "The cursor is not one this service gave out. Begin again without it.")
    return key


def decode_number(cursor: str | None) -> int:
    if cursor is None:
        return 0
    key = decode(cursor)
    if not key.isdigit() or len(key) > 18:
        raise ApiError(422, "invalid_cursor", "The cursor is not one this service gave out. Begin again without it.")
    return int(key)
