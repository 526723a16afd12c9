"""Every log event of the source, found in its syntax tree."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_LEVELS = {
    "debug": "DEBUG",
    "info": "INFO",
    "warning": "WARNING",
    "error": "ERROR",
    "exception": "ERROR",
    "critical": "CRITICAL",
}
_OUTAGE_LOG = "service/background/outage_log.py"
"""Its `failed(what, message)` logs a warning with the message that each caller gives."""


@dataclass(frozen=True, order=True)
class LogEvent:
    """file: below the root of the repository."""

    file: str
    level: str
    message: str


def log_events(root: Path, packages: tuple[str, ...] = ("service", "trainer", "norm")) -> Iterator[LogEvent]:
    """Raises: ValueError for a call whose message is no literal, since nobody could search for it."""
    for package in packages:
        for path in sorted((root / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and (found := _level_and_message(node)) is not None:
                    level, message = found
                    where = path.relative_to(root).as_posix()
                    if isinstance(message, ast.Name) and where == _OUTAGE_LOG:
                        continue
                    if not isinstance(message, ast.Constant):
                        raise ValueError(f"{where}:{node.lineno}: the message of a log event must be a literal.")
                    yield LogEvent(where, level, str(message.value))


def _level_and_message(call: ast.Call) -> tuple[str, ast.expr] | None:
    if not isinstance(call.func, ast.Attribute):
        return None
    if call.func.attr == "failed" and _name(call.func.value) == "outage_log":
        return "WARNING", call.args[1]
    if call.func.attr in _LEVELS and _is_logger(call.func.value):
        return _LEVELS[call.func.attr], call.args[0]
    return None


def _is_logger(node: ast.expr) -> bool:
    return _name(node) in ("logger", "log", "logging")


def _name(node: ast.expr) -> str:
    name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
    return name.strip("_")
