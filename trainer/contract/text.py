"""Makes text and values from anywhere fit for every database, JSON document and terminal."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_CUT = " … [cut: {} characters in all]"
_DEEPEST = 32
_MARKS_OF_MARKDOWN = re.compile(r"[\\`*_\[\]~#|]")
_COMMANDS_OF_A_TERMINAL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Control characters except tab and newline, and those that change the direction of text."""


def storable(text: str, limit: int | None = None) -> str:
    """`text` with NUL and lone surrogates replaced by U+FFFD, and cut to `limit` characters, marker included.

    PostgreSQL refuses NUL in text and JSON; a lone surrogate, as in a file name that is not UTF-8, has no UTF-8 form.

    >>> storable("caf\\udce9.png\\x00")
    'caf\ufffd.png\ufffd'
    >>> storable("x" * 100, limit=40)
    'xxxxxxxxx … [cut: 100 characters in all]'
    """
    clean = text.replace("\x00", REPLACEMENT)
    if not clean.isascii():
        clean = clean.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if limit is None or len(clean) <= limit:
        return clean
    marker = _CUT.format(len(clean))
    return (clean[: max(0, limit - len(marker))] + marker)[:limit]


def visible(text: str) -> str:
    """`text` with what a terminal would obey instead of showing written out, as \\x1b for ESC.

    >>> visible("\\x1b[2J evil \\u202e txt.exe")
    '\\\\x1b[2J evil \\\\u202e txt.exe'
    """
    return _COMMANDS_OF_A_TERMINAL.sub(lambda found: ascii(found[0])[1:-1], text)


def in_markdown(text: str) -> str:
    """Markdown that shows `text` as it was written: a type in angle brackets, the underscores of a name, ESC as \\x1b.

    >>> print(in_markdown("__init__ got <class 'str'>"))
    \\_\\_init\\_\\_ got &lt;class 'str'&gt;
    """
    shown = html.escape("\n".join(map(visible, text.splitlines())), quote=False)
    return _MARKS_OF_MARKDOWN.sub(lambda found: f"\\{found[0]}", shown).replace("@", "&#64;")


def storable_json(value: Any, *, depth: int = _DEEPEST) -> Any:
    """`value` as JSON can hold it anywhere: storable strings, and NaN and infinity as the words that stand for them.

    Anything JSON has no form for (a NumPy float, an exception) becomes its number or its text; nesting beyond `depth`
    becomes text.

    >>> storable_json({"dice": float("nan"), "shape": (1, 2), 3: {"four"}})
    {'dice': 'NaN', 'shape': [1, 2], '3': ['four']}
    """
    if value is None or isinstance(value, bool) or (isinstance(value, int) and abs(value) < 2**63):
        return value
    if isinstance(value, str):
        return storable(value)
    if depth <= 0:
        return storable(repr(value))
    if isinstance(value, Mapping):
        return {storable(str(key)): storable_json(item, depth=depth - 1) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [storable_json(item, depth=depth - 1) for item in value]
    return _scalar(value)


def _scalar(value: Any) -> Any:
    try:
        number = float(value)
    except Exception:  # whatever a foreign object raises, its text will do
        return storable(text_of(value))
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


def text_of(value: Any) -> str:
    """`str(value)`, or what can be said of a value whose text can't be had."""
    try:
        return str(value)
    except Exception:
        return f"<{type(value).__name__} that has no text>"


def counted(number: int, noun: str) -> str:
    """`1 sample`, `2 samples`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def name_some(names: Sequence[str], most: int = 3) -> str:
    """`a, b, c and 12 more`; names that are empty are left out."""
    named = ", ".join(filter(None, names[:most]))
    return named if len(names) <= most else f"{named} and {len(names) - most} more"
