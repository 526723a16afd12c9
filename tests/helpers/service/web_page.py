"""What a page says: its text, the text of a section, the rows of a table, and the values of an attribute."""

from __future__ import annotations

import html
import re
from typing import Any


def text(answer: Any) -> str:
    """What a reader sees, on one line."""
    return _plain(answer.text)


def section(answer: Any, heading: str, *, tags: bool = False) -> str:
    """The section under the heading with this id. tags: as HTML."""
    found = re.search(rf'<section aria-labelledby="{heading}">(.*?)</section>', answer.text, re.DOTALL)
    assert found, f"no section {heading}"
    return found[1] if tags else _plain(found[1])


def rows(answer: Any, heading: str) -> list[str]:
    """The rows of the table in a section."""
    body = re.search(r"<tbody>(.*?)</tbody>", section(answer, heading, tags=True), re.DOTALL)
    return [_plain(row) for row in re.findall(r"<tr>(.*?)</tr>", body[1], re.DOTALL)] if body else []


def items(answer: Any, attribute: str) -> list[str]:
    """All values of an attribute."""
    return [html.unescape(value) for value in re.findall(rf'\b{attribute}="([^"]*)"', answer.text)]


def _plain(marked: str) -> str:
    without = re.sub(r"<(style|script)>.*?</\1>", " ", marked, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", without)).split())
