"""The extremes of every field, found by walking the schema that the field has."""

from __future__ import annotations

import copy
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

Path = tuple[str | int, ...]
_ALTERNATIVES = (frozenset({"epochs", "steps"}), frozenset({"name", "class_path"}))
"""Fields of one part of which only one may be given."""


def raw(text: str) -> str:
    """Stands for JSON that json.dumps would not write."""
    return f"@raw {text} raw@"


def deep(depth: int) -> Any:
    value: Any = "deep"
    for _ in range(depth):
        value = {"a": [value]}
    return value


NUMBERS: dict[str, Any] = {
    "0": 0,
    "-1": -1,
    "2**31": 2**31,
    "2**53": 2**53,
    "2**63-1": 2**63 - 1,
    "2**63": 2**63,
    "-2**63": -(2**63),
    "10**30": 10**30,
    "10**300": 10**300,
    "1e12": 1e12,
    "1e15": 1e15,
    "1e308": 1e308,
    "-1e308": -1e308,
    "denormal": 5e-324,
    "-0.0": -0.0,
    "0.1": 0.1,
    "nan": math.nan,
    "inf": math.inf,
    "-inf": -math.inf,
    "1e400": raw("1e400"),
    "5000 digits": raw("9" * 5000),
}
TEXTS: dict[str, Any] = {
    "empty": "",
    "blank": " ",
    "long": "x" * 5000,
    "very long": "x" * 200_000,
    "NUL": "a\x00b",
    "surrogate": "a\udce9b",
    "right to left": "\u202etxet\u202c",
    "escape": "\x1b[2J",
    "newlines": "a\n\r\u2028b",
    "4-byte": "\N{DNA DOUBLE HELIX}" * 50,
    "quotes": "'\"`;--|%s{0}",
    "markup": "<script>[bold]:label:",
    "number": "1e-3",
    "date": "2026-01-01",
    "far date": "9999-12-31T23:59:59Z",
}
THINGS: dict[str, Any] = {
    "null": None,
    "true": True,
    "list": [],
    "object": {},
    "list of null": [None],
    "deep": deep(10),
    "too deep": deep(5000),
    "as deep as may be": deep(14),
}
KEYS: dict[str, Any] = {
    "key a(b)": {"a(b)": 1},
    "one dotted name twice": {"a.b": 1, "a": {"b": 2}},
    "empty key": {"": 1},
    "key of 300": {"k" * 300: 1},
    "key with NUL": {"a\x00": 1},
    "key with surrogate": {"\udce9": 1},
    "key with slash": {"/a/../b": 1, "a\\b": 2, "a~b": 3},
    "key with newline": {"a\nb": 1},
    "keys of one letter case": {"Key": 1, "key": 2},
    "values of all kinds": {"a": None, "b": [1, "x", {"y": 1e308}], "c": 2**63 - 1, "d": 5e-324, "e": "x" * 7000},
    "__proto__": {"__proto__": {"x": 1}, "self": 1, "class": 2},
}
MANY_KEYS: dict[str, Any] = {
    "40,000 keys": {f"class_{number}": number for number in range(40_000)},
    "list of 40,000": list(range(40_000)),
}
ANYTHING = NUMBERS | TEXTS | THINGS | KEYS
_KINDS: dict[tuple[str, ...], dict[str, Any]] = {
    ("integer", "number"): NUMBERS,
    ("string",): TEXTS,
    ("object", "array"): THINGS,
    ("object",): KEYS,
}
"""Types in JSON schema of which these are values."""


@dataclass(frozen=True)
class Poison:
    """content: JSON as it goes over the wire. kind: the schema's own bounds, or the name of an extreme."""

    name: str
    content: bytes = field(repr=False)
    place: str = ""


@dataclass(frozen=True)
class ShortName:
    """A field, and every form it may have."""

    path: Path
    forms: tuple[Mapping[str, Any], ...]

    @property
    def name(self) -> str:
        return ".".join(map(str, self.path))

    @property
    def section(self) -> str:
        return str(self.path[0])


def places(model: type[BaseModel]) -> list[ShortName]:
    """Every field of a model, those of its parts, elements and entries included."""
    schema = model.model_json_schema()
    found = {place.path: place for place in _walk(schema, schema.get("$defs", {}), (), 0)}
    return [place for path, place in found.items() if path]


def _walk(schema: Mapping[str, Any], parts: Mapping[str, Any], path: Path, depth: int) -> Iterator[ShortName]:
    forms = tuple(_forms(schema, parts))
    yield ShortName(path, forms)
    if depth > 6:
        return
    for form in forms:
        for name, inner in form.get("properties", {}).items():
            yield from _walk(inner, parts, (*path, name), depth + 1)
        for entry in (form.get("additionalProperties"), *form.get("patternProperties", {}).values()):
            if isinstance(entry, dict):
                yield from _walk(entry, parts, (*path, "KEY"), depth + 1)
        if isinstance(element := form.get("items"), dict):
            yield from _walk(element, parts, (*path, 0), depth + 1)


def _forms(schema: Mapping[str, Any], parts: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    if "$ref" in schema:
        yield from _forms(parts[schema["$ref"].rpartition("/")[2]], parts)
    elif "anyOf" in schema:
        for form in schema["anyOf"]:
            yield from _forms(form, parts)
    else:
        yield schema


def extremes(place: ShortName, share: int = 1) -> dict[str, Any]:
    """Values by name: at and around the bounds the field has itself, all of its own kind, and anything at all.

    share: of what is of another kind, which is refused for its type, take one in so many, others for each field.
    """
    own: dict[str, Any] = {}
    for form in place.forms:
        own |= _at_bounds(form)
    kinds = {str(form.get("type", "object")) for form in place.forms}
    found = [(name, value, kind) for kind, group in _KINDS.items() for name, value in group.items()]
    start = sum(map(ord, place.name))
    for number, (name, value, kind) in enumerate(found, start):
        if kinds & set(kind) or not number % share:
            own[name] = value
    return own | (MANY_KEYS if "object" in kinds and not _has_fields(place) else {})


def _has_fields(place: ShortName) -> bool:
    return any("properties" in form for form in place.forms)


def _at_bounds(form: Mapping[str, Any]) -> dict[str, Any]:
    found = {f"allowed {value!r}": value for value in form.get("enum", [form["const"]] if "const" in form else [])}
    for word in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
        if word in form:
            bound = form[word]
            found |= {word: bound, f"{word} + 1": bound + 1, f"{word} - 1": bound - 1}
            found |= {f"{word} and a bit": math.nextafter(bound, math.inf)}
    for word in ("minLength", "maxLength"):
        if word in form:
            found |= {word: "x" * form[word], f"{word} + 1": "x" * (form[word] + 1)}
    for word in ("minItems", "maxItems", "minProperties", "maxProperties"):
        if word in form:
            for count in (form[word], form[word] + 1):
                is_list = word.endswith("Items")
                found[f"{word} of {count}"] = ["x"] * count if is_list else {f"k{n}": "x" for n in range(count)}
    return found


def placed(document: Any, path: Path, value: Any) -> Any:
    """A copy of the document with the value there, without what it excludes."""
    made = copy.deepcopy(document)
    target = made
    for part, following in itertools.pairwise(path):
        if isinstance(part, int):
            target = target[part]
        else:
            missing: Any = [{}] if isinstance(following, int) else {}
            if target.get(part) in (None, []):
                target[part] = missing
            target = target[part]
    last = path[-1]
    if isinstance(last, int):
        target[:] = [value]
        return made
    for group in _ALTERNATIVES:
        if last in group:
            for other in group - {last}:
                target.pop(other, None)
    target[last] = value
    return made


def written(value: Any) -> bytes:
    """JSON, also of what JSON has no form for."""
    try:
        text = json.dumps(value)
    except RecursionError:
        return b'{"deep":' * 3000 + b"1" + b"}" * 3000
    return re.sub(r'"@raw (.*?) raw@"', r"\1", text).encode()


def poisons(model: type[BaseModel], document: Any, wanted: str | None = None, share: int = 1) -> list[Poison]:
    """Of every field of a model, or of one section of it: a good document with one extreme in it."""
    return [
        Poison(f"{place.name}: {name}", written(placed(document, place.path, value)), place.name)
        for place in places(model)
        if wanted in (None, place.section)
        for name, value in extremes(place, share).items()
    ]
