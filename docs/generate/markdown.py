"""Pieces of Markdown: texts of the code as prose, tables and headings."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Sequence

_LABEL = re.compile(r"^([A-Za-z]\w*(?:,? \w+){0,2}): (?=\S)")
_CODE = re.compile(r"(`[^`]*`)")


def generated(title: str, source: str, intro: str) -> str:
    """The head of a page. source: what to change instead of the page."""
    note = f"<!-- Written by `python -m docs.generate` from {source}. Change that, not this page. -->"
    return f"{note}\n\n# {title}\n\n{intro.strip()}"


def prose(text: str) -> str:
    """A text of the code: nothing in it but its code spans means anything in Markdown. Pages are linked."""
    parts = _CODE.split(text)
    escaped = [part if part.startswith("`") else re.sub(r"([*<\\])", r"\\\1", part) for part in parts]
    return re.sub(r"`?docs/reference/([\w-]+\.md)`?", r"[\1](\1)", "".join(escaped))


def joined(text: str) -> str:
    """The same on one line."""
    return prose(" ".join(text.split()))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([f"| {' | '.join(head)} |", "|" + "---|" * len(head), *lines])


def fence(code: str, language: str = "") -> str:
    return f"```{language}\n{code.rstrip()}\n```"


def docstring(text: str) -> str:
    """A docstring as prose, with its examples as Python code."""
    first, *others = re.split(r"\n\s*\n", inspect.cleandoc(text))
    return "\n\n".join([prose(" ".join(first.split())), *(_block(block) for block in others)])


def _block(block: str) -> str:
    if block.startswith(">>>"):
        return fence(block, "python-console")
    if block.startswith("    "):
        return fence(inspect.cleandoc(block), "python")
    return "\n\n".join(_entries(block.splitlines()))


def _entries(lines: Iterable[str]) -> Iterator[str]:
    """Paragraphs: each `label: …` at the beginning of a line starts one."""
    found: list[list[str]] = []
    for line in lines:
        if not found or (_LABEL.match(line) and found[-1][-1].endswith((".", ":", ";", ")"))):
            found.append([])
        found[-1].append(line.strip())
    for entry in found:
        text = " ".join(entry)
        label = _LABEL.match(text)
        yield f"**{prose(label[1])}:** {prose(text[label.end() :])}" if label else prose(text)


def signature(function: object) -> str:
    """`(a: int, b: str = 'x') -> bool`, with annotations as in the source, or nothing where there is none."""
    try:
        found = inspect.signature(function)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return ""
    return re.sub(r"(?<=: |> )'((?:[^'\\]|\\.)*)'|(?<=: |> )\"([^\"]*)\"", r"\1\2", str(found))
