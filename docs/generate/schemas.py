"""JSON schemas in words: what a field takes, within which bounds, and what holds where it is left out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

Schema = dict[str, Any]
Link = Callable[[str], str]
"""What stands for another schema by its name."""


def type_of(schema: Schema, link: Link) -> str:
    """What a value must be: `integer (1 to 64)`, or `text or null`."""
    if "$ref" in schema:
        return link(schema["$ref"].rpartition("/")[2])
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(type_of(one, link) for one in schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        return " or ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    kind = str(schema.get("type"))
    return _container(schema, link) if kind in ("array", "object") else _plain(kind, schema)


def _container(schema: Schema, link: Link) -> str:
    if schema["type"] == "array":
        return f"list{_at_most(schema.get('maxItems'), 'entries')} of {type_of(schema.get('items', {}), link)}"
    inner = schema.get("additionalProperties", next(iter(schema.get("patternProperties", {}).values()), True))
    to = type_of(inner, link) if isinstance(inner, dict) else "any value"
    return f"map{_at_most(schema.get('maxProperties'), 'entries')} of names to {to}"


def _plain(kind: str, schema: Schema) -> str:
    if kind == "string":
        return _text(schema)
    if kind in ("integer", "number"):
        return kind + _range(schema)
    return {"boolean": "`true` or `false`", "null": "`null`"}.get(kind, "any value")


def _text(schema: Schema) -> str:
    if "format" in schema:
        return f"text ({schema['format']})"
    return "text" + _at_most(schema.get("maxLength"), "characters")


def _at_most(number: int | None, what: str) -> str:
    return "" if number is None else f" (at most {number:,} {what})"


def _range(schema: Schema) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    bounds = [f"more than {_number(schema['exclusiveMinimum'])}" if "exclusiveMinimum" in schema else ""]
    bounds.append(f"less than {_number(schema['exclusiveMaximum'])}" if "exclusiveMaximum" in schema else "")
    if low is not None and high is not None:
        bounds.append(f"{_number(low)} to {_number(high)}")
    else:
        bounds.append("" if low is None else f"at least {_number(low)}")
        bounds.append("" if high is None else f"at most {_number(high)}")
    found = ", ".join(bound for bound in bounds if bound)
    return f" ({found})" if found else ""


def _number(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) else f"{value:,}"


def default_of(schema: Schema, *, required: bool) -> str:
    if required:
        return "required"
    return f"default `{json.dumps(schema['default'])}`" if "default" in schema else "may be left out"


def references(schema: Any) -> Iterator[str]:
    """The names of all schemas that this one names, in their order."""
    if isinstance(schema, dict):
        if "$ref" in schema:
            yield schema["$ref"].rpartition("/")[2]
        for value in schema.values():
            yield from references(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from references(value)
