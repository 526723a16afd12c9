"""Reads YAML 1.2 and JSON as people mean it: 1e-3 is a number, dates and `no` are text, a key appears once."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

MAX_DEPTH = 32
"""The limit for a body over REST."""
_MOST_DIGITS = 400
_EXACT = 2**53
_NULL = re.compile(r"null|Null|NULL|~|")
_TRUE, _FALSE = re.compile(r"true|True|TRUE"), re.compile(r"false|False|FALSE")
_DECIMAL = re.compile(r"[-+]?[0-9]+")
_GROUPED = re.compile(r"[-+]?[0-9]{1,3}(_[0-9]{3})+")
_OCTAL, _HEXADECIMAL = re.compile(r"0o[0-7]+"), re.compile(r"0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_READERS: Sequence[tuple[re.Pattern[str], Callable[[str], Any]]] = (
    (_NULL, lambda _text: None),
    (_TRUE, lambda _text: True),
    (_FALSE, lambda _text: False),
    (_DECIMAL, int),
    (_GROUPED, int),
    (_OCTAL, lambda text: int(text, 8)),
    (_HEXADECIMAL, lambda text: int(text, 16)),
    (_FLOAT, lambda text: _whole(float(text))),
    (_NOT_FINITE, lambda _text: math.nan),
)
_PLAIN, _TEXT = "plain", "tag:yaml.org,2002:str"
_TAGS = (_PLAIN, _TEXT, "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")


class SpecFileError(ValueError):
    """A job file that can't be read."""


def scalar(text: str) -> Any:
    """What a plain word stands for in the core schema of YAML 1.2, and 1_000 for a thousand.

    A float without a fraction is a whole number, so that `steps: 1e4` is one.

    >>> [scalar(text) for text in ("1e-3", "1e4", ".5", "1_000", "0o17", "017", "no", "1:30", "2026-11-28")]
    [0.001, 10000, 0.5, 1000, 15, 17, 'no', '1:30', '2026-11-28']

    Raises: ValueError for a number that is too large, infinity and NaN.
    """
    for pattern, read in _READERS:
        if pattern.fullmatch(text):
            if len(text) > _MOST_DIGITS:
                raise ValueError(f"a number has at most {_MOST_DIGITS} digits, got {len(text)}")
            value = read(text)
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"a number must be finite, got {text}")
            return value
    return text


def _whole(number: float) -> int | float:
    return int(number) if number.is_integer() and abs(number) <= _EXACT else number


def parse(text: str, where: str) -> Any:
    """The value of JSON or YAML text. where: the name of the file, for messages. Raises: SpecFileError with the
    line."""
    if text.lstrip().startswith("{"):
        try:
            return _parse_json(text, where)
        except json.JSONDecodeError as error:
            if where.endswith(".json"):
                raise SpecFileError(f"{where} is not JSON: {error}") from error
    loader = _loader(text, where)
    try:
        node = loader.get_single_node()
        return None if node is None else _value(node, where)
    except yaml.MarkedYAMLError as error:
        raise SpecFileError(_yaml_problem(error, text, where)) from error
    except yaml.YAMLError as error:
        raise SpecFileError(f"{where} is not YAML: {error}") from error
    finally:
        loader.dispose()


class _Loader(yaml.SafeLoader):
    """YAML nodes without aliases, which can make a small file huge, and without deep nesting, of which 3,000 brackets
    take seconds. The meaning of plain words is decided in `scalar`."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012
    DEFAULT_SCALAR_TAG = _PLAIN  # type: ignore[misc]
    where = ""
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.events.AliasEvent):
            _refuse(self.where, event, "YAML aliases (*name) are not allowed in job files; write the value out")
        if self.depth > MAX_DEPTH:
            _refuse(self.where, event, f"it must not be nested deeper than {MAX_DEPTH}")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _loader(text: str, where: str) -> _Loader:
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:
        line, mark = text.count("\n", 0, error.position) + 1, f"U+{error.character:04X}"
        raise SpecFileError(f"{where} is not YAML: line {line} holds the control character {mark}.") from error
    loader.where = where
    return loader


def _value(node: Node, where: str) -> Any:
    if node.tag not in _TAGS:
        tag = node.tag.replace("tag:yaml.org,2002:", "!!")
        _refuse(where, node, f"the tag {tag} is not allowed in job files; leave it out")
    if isinstance(node, MappingNode):
        return _mapping(node, where)
    if isinstance(node, SequenceNode):
        return [_value(item, where) for item in node.value]
    assert isinstance(node, ScalarNode)
    try:
        return _text(node.value) if node.style or node.tag == _TEXT else scalar(node.value)
    except ValueError as error:
        _refuse(where, node, str(error))


def _text(text: str) -> str:
    """Joins the two halves of a character, as JSON escapes it."""
    if text.isascii():
        return text
    try:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    except UnicodeDecodeError as error:
        raise ValueError("a text must not hold half a character (a lone surrogate)") from error


def _mapping(node: MappingNode, where: str) -> dict[str, Any]:
    """Keys stay text, so that a date or a number can be the name of a label."""
    found: dict[str, Any] = {}
    first: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, ScalarNode):
            _refuse(where, key, "a key must be text")
        if key.value in found:
            _refuse(where, key, f"{key.value!r} is given a second time, first in line {first[key.value]}. Keep one")
        found[key.value], first[key.value] = _value(value, where), line
    return found


def _refuse(where: str, at: Any, problem: str) -> NoReturn:
    mark = at.start_mark
    raise SpecFileError(f"{where}, line {mark.line + 1}, column {mark.column + 1}: {problem}.")


def _yaml_problem(error: yaml.MarkedYAMLError, text: str, where: str) -> str:
    """A sentence for each common mistake, and the parser's own words for the rest."""
    mark = error.problem_mark or error.context_mark
    if mark is None:
        return f"{where} is not YAML: {error}"
    at = f"{where} is not YAML: line {mark.line + 1}, column {mark.column + 1}"
    problem = error.problem or ""
    if "found another document" in problem:
        return f"{where} must hold one document, and a second one begins in line {mark.line + 1}. Use a file for each."
    if "'\\t'" in problem:
        return f"{at}: a tab. Indent with spaces."
    lines = text.splitlines()
    shown = f": {lines[mark.line].strip()[:80]}" if mark.line < len(lines) else " (the end of the file)"
    reason = ", ".join(filter(None, (error.context, problem)))
    return f"{at}: {reason}{shown}"


def _parse_json(text: str, where: str) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        name, count = Counter(name for name, _ in pairs).most_common(1)[0] if pairs else ("", 0)
        if count > 1:
            lines = [str(at) for at, line in enumerate(text.splitlines(), start=1) if json.dumps(name) in line]
            raise SpecFileError(f"{where}: {name!r} is given a second time (line {', '.join(lines)}). Keep one.")
        return dict(pairs)

    def constant(word: str) -> NoReturn:
        raise SpecFileError(f"{where}: a number must be finite, got {word}.")

    try:
        value = json.loads(text, object_pairs_hook=once, parse_constant=constant, parse_float=scalar, parse_int=scalar)
    except RecursionError as error:
        raise SpecFileError(f"{where} must not be nested deeper than {MAX_DEPTH}.") from error
    except (SpecFileError, json.JSONDecodeError):
        raise
    except ValueError as error:
        raise SpecFileError(f"{where}: {error}.") from error
    if _depth(value) > MAX_DEPTH:
        raise SpecFileError(f"{where} must not be nested deeper than {MAX_DEPTH}.")
    return value


def _depth(value: Any) -> int:
    if not isinstance(value, dict | list):
        return 0
    inner = value.values() if isinstance(value, dict) else value
    return 1 + max(map(_depth, inner), default=0)
