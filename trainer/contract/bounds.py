"""Bounded types for fields: whoever sends a value, arithmetic, database columns and documents can handle it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainSerializer

from syncnorm.trainer.contract.text import storable, storable_json

MOST_STEPS = 10**12
MOST_EPOCHS = 10**9
MOST_WORKERS = 4096
LONGEST_S = 10 * 365 * 86_400.0
"""Ten years. Longer times count as that long."""
MOST_AMOUNT = 1e15
MOST_METRICS = 1000
MOST_VALUES = 10_000
DEEPEST = 16
LONGEST_TEXT = 65_536
_LONGEST_KEY = 250
_LARGEST_INT = 2**63 - 1


def _clamped(low: int, high: int) -> BeforeValidator:
    def clamp(value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return value
        return low if math.isnan(value) else int(min(max(value, low), high))

    return BeforeValidator(clamp)


def _amount(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    return 0.0 if math.isnan(value) else float(min(max(value, 0.0), MOST_AMOUNT))


def _cut(limit: int) -> BeforeValidator:
    return BeforeValidator(lambda value: storable(value, limit) if isinstance(value, str) else value)


def _number(value: Any) -> Any:
    return math.nan if value is None else value  # older results wrote null for NaN


def shown(value: float) -> Any:
    """A number in JSON: NaN and infinity become words."""
    return storable_json(value)


Number = Annotated[
    float,
    BeforeValidator(_number),
    PlainSerializer(shown, return_type=float | Literal["NaN", "Infinity", "-Infinity"], when_used="json"),
]
"""Any float; in JSON, `"NaN"`, `"Infinity"` and `"-Infinity"` are values."""

Amount = Annotated[float, Field(ge=0, le=MOST_AMOUNT), BeforeValidator(_amount)]
"""A measured time, count or share. NaN counts as 0."""
Step = Annotated[int, Field(ge=0, le=2**53), _clamped(0, 2**53)]
Epoch = Annotated[int, Field(ge=0, le=2**31 - 1), _clamped(0, 2**31 - 1)]
Bytes = Annotated[int, Field(ge=0, le=2**63 - 1), _clamped(0, 2**63 - 1)]
Pid = Annotated[int, Field(ge=0, le=2**31 - 1), _clamped(0, 2**31 - 1)]
Rank = Annotated[int, Field(ge=0, lt=MOST_WORKERS)]
Speaker = Annotated[int, Field(ge=-1, lt=MOST_WORKERS)]
"""A rank, or -1 for the driver."""
Sequence = Annotated[int, Field(ge=1, le=2**53)]
Fence = Annotated[str, Field(max_length=64), _cut(64)]
Word = Annotated[str, Field(max_length=64), _cut(64)]
ShortName = Annotated[str, Field(max_length=255), _cut(255)]
Digest = Annotated[str, Field(max_length=128), _cut(128)]
Path = Annotated[str, Field(max_length=4096), _cut(4096)]
Line = Annotated[str, Field(max_length=8192), _cut(8192)]
Message = Annotated[str, Field(max_length=16_384), _cut(16_384)]


def _tail(limit: int) -> BeforeValidator:
    """Cuts the beginning of a traceback, since its end says most."""

    def cut(value: Any) -> Any:
        if not isinstance(value, str) or len(value) <= limit:
            return storable(value) if isinstance(value, str) else value
        head = f"[cut: the last of {len(value)} characters]\n"
        return head + storable(value[len(head) - limit :])

    return BeforeValidator(cut)


Traceback = Annotated[str, Field(max_length=LONGEST_TEXT), _tail(LONGEST_TEXT)]
Stack = Annotated[str, Field(max_length=16_384), _tail(16_384)]
"""Of one thread."""


def _instant(value: Any) -> Any:
    try:
        return value if datetime.fromisoformat(value).tzinfo and len(value) <= 40 else _now()
    except (TypeError, ValueError):
        return _now()


def _now() -> str:
    return datetime.now(UTC).isoformat()


Instant = Annotated[str, Field(max_length=40), BeforeValidator(_instant)]
"""RFC 3339 with an offset. An invalid time becomes the time at which it was read."""


def _some(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    return {storable(str(name), _LONGEST_KEY): value[name] for name in list(value)[:MOST_METRICS]}


Metrics = Annotated[dict[str, Number], Field(max_length=MOST_METRICS), BeforeValidator(_some)]


def fitting(most_bytes: int, depth: int = DEEPEST) -> BeforeValidator:
    """Makes an object plain, storable JSON. One that is too large is replaced by a note of its size."""

    def fit(value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        clean = storable_json(value, depth=depth)
        size = len(json.dumps(clean))
        return clean if size <= most_bytes else {"left_out": f"{size} bytes; at most {most_bytes} are kept"}

    return BeforeValidator(fit)


def free_problem(value: Any) -> tuple[str, str] | None:
    """What is wrong with a value of a field that takes any JSON, and where in it as a dotted path; None if it is
    fine."""
    left = MOST_VALUES
    todo: list[tuple[str, Any, int]] = [("", value, 0)]
    while todo:
        where, one, depth = todo.pop()
        left -= 1
        if left < 0:
            return "", f"must not hold more than {MOST_VALUES:,} values in all. Put such a list into a file and name it"
        if problem := _scalar_problem(one):
            return where, problem
        if depth >= DEEPEST and isinstance(one, dict | list):
            return where, f"must not be nested deeper than {DEEPEST}. Flatten it"
        if isinstance(one, dict):
            if problem := next(filter(None, map(_key_problem, one)), None):
                return where, problem
            todo += [(f"{where}.{key}".lstrip("."), item, depth + 1) for key, item in one.items()]
        elif isinstance(one, list):
            todo += [(f"{where}.{index}".lstrip("."), item, depth + 1) for index, item in enumerate(one)]
    return None


def _key_problem(key: Any) -> str | None:
    if not isinstance(key, str) or not 1 <= len(key) <= _LONGEST_KEY or storable(key) != key:
        return f"must have keys of 1 to {_LONGEST_KEY} characters without NUL, got {str(key)[:40]!r}"
    return None


def _scalar_problem(value: Any) -> str | None:
    if isinstance(value, int) and abs(value) > _LARGEST_INT:
        return f"must be a whole number of 64 bit, from -{_LARGEST_INT} to {_LARGEST_INT}. Use a smaller number"
    if isinstance(value, float) and not math.isfinite(value):
        return f"must be a finite number, got {value}"
    if isinstance(value, str) and len(value) > LONGEST_TEXT:
        return f"must not exceed {LONGEST_TEXT:,} characters, got {len(value):,}. Put the text into a file and name it"
    if isinstance(value, str) and storable(value) != value:
        return "must not contain NUL or lone surrogates"
    return None
