"""Reads JSON bodies strictly: plain JSON as in RFC 8259, not nested too deeply, and storable in every database."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Request

from syncnorm.service.api.http.errors import ApiError, FieldProblem

MAX_DEPTH = 32
MAX_INT = 2**63 - 1


@dataclass(frozen=True)
class JsonBody:
    """The parsed value, and the digest of its canonical form."""

    value: Any
    digest: str


async def read_json(request: Request) -> JsonBody:
    """Raises: ApiError 400 if it is not JSON, 422 for values that can't be stored."""
    value = parse(await request.body())
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return JsonBody(value, hashlib.sha256(canonical.encode()).hexdigest())


Json = Annotated[JsonBody, Depends(read_json)]


def parse(raw: bytes) -> Any:
    """Raises: ApiError 400 if it is not JSON, 422 for duplicate keys and values that can't be stored."""
    try:
        value = json.loads(raw, parse_constant=_refuse, parse_int=_integer, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, "malformed_json", f"The body must be JSON: {error}") from error
    _check(value, "", 0)
    return value


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _integer(text: str) -> int:
    """Keeps the first digits of a number that is longer than Python reads; it is refused as too large anyway."""
    return int(text[:40])


class _Repeated(dict[str, Any]):
    """An object with a duplicate key, for which readers would silently take one value or the other."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        counts = Counter(key for key, _ in pairs)
        self.key = next(key for key, count in counts.items() if count > 1)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    return made if len(made) == len(pairs) else _Repeated(pairs)


def _check(value: Any, where: str, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise _bad(where, f"must not be nested deeper than {MAX_DEPTH}")
    if isinstance(value, _Repeated):
        raise _bad(f"{where}/{_escape(value.key)}", "must be given once; the object has this key twice")
    if isinstance(value, dict):
        for key, item in value.items():
            _check(key, f"{where}/{_escape(key)}", depth)
            _check(item, f"{where}/{_escape(key)}", depth + 1)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check(item, f"{where}/{index}", depth + 1)
    elif isinstance(value, str):
        _check_text(value, where)
    elif isinstance(value, int) and abs(value) > MAX_INT:
        raise _bad(where, "must fit 64 bit")
    elif isinstance(value, float) and value in (float("inf"), float("-inf")):
        raise _bad(where, "must be a finite number")


def _check_text(value: str, where: str) -> None:
    if "\x00" in value or any("\ud800" <= char <= "\udfff" for char in value):
        raise _bad(where, "must not contain NUL or lone surrogates")


def _escape(key: str) -> str:
    safe = key.encode("utf-8", "replace").decode()
    return safe.replace("~", "~0").replace("/", "~1")[:120]


def _bad(where: str, detail: str) -> ApiError:
    errors = [FieldProblem(pointer=where, detail=detail)]
    return ApiError(
        422, "invalid_value", "The body holds a value that can't be stored; `errors` says where.", errors=errors
    )
