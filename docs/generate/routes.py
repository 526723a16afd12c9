"""The page of the REST API, from the OpenAPI document that the service itself gives out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

from docs.generate.markdown import generated, joined, table
from docs.generate.schemas import Schema, default_of, references, type_of
from syncnorm.service.api.app import create_app
from syncnorm.service.api.components import Components
from syncnorm.service.settings import Settings
from syncnorm.service.telemetry.metrics import Metrics

INTRO = """
Every route with its parameters, its body and its answers. A running service has the same as `/docs`, where you can try
them, and as `/openapi.json`, from which you can generate a client.

Send your token as `Authorization: Bearer …` where authentication is on. *Scope* names the one that your token needs.
Every answer of 4xx and 5xx is `application/problem+json` (RFC 9457) with `code`, `detail` and `request_id`. Unknown
query parameters are refused. [Verbs, keys and plans](verbs-and-plans.md) has examples.
"""
ELSEWHERE = {"JobSpec": "job-spec.md", "StudySpec": "study-spec.md"}


def rest() -> str:
    document = openapi()
    parts = document["components"]["schemas"]
    operations = [(m, path, one) for path, of in document["paths"].items() for m, one in of.items()]
    tags = dict.fromkeys(one["tags"][0] for _, _, one in operations)
    sections = [generated("The REST API", "the routes and views in service/api/", INTRO)]
    for tag in tags:
        about = next((one["description"] for one in document["tags"] if one["name"] == tag), "")
        sections += [f"## {tag.capitalize()}", joined(about)]
        for method, path, one in operations:
            sections += _operation(method, path, one) if one["tags"][0] == tag else ()
    shown = _reached([one for _, _, one in operations], parts)
    return "\n\n".join(
        [*sections, "## Objects", *(text for name in sorted(shown) for text in _part(name, parts[name]))]
    )


def openapi() -> dict[str, Any]:
    """The document of a service that does not run: its routes need none of the parts that answer them."""
    parts = SimpleNamespace(settings=Settings.from_environment({}), metrics=Metrics(), audit_trail=None)
    return create_app(cast(Components, parts)).openapi()


def _operation(method: str, path: str, one: dict[str, Any]) -> Iterator[str]:
    yield f"### {method.upper()} `{path}`"
    yield "\n\n".join(joined(text) for text in re.split(r"\n\s*\n", one.get("description", "")))
    scopes = [scope for rule in one.get("security", ()) for scope in rule.get("token", ())]
    answers = [f"{status} {_answer(answer)}".strip() for status, answer in one["responses"].items() if status < "400"]
    refused = ", ".join(status for status in one["responses"] if status >= "400")
    body = [f"*Body:* {_content(one['requestBody'])}."] if "requestBody" in one else []
    facts = [f"*Scope:* `{scopes[0]}`." if scopes else "*Scope:* none, it needs no token.", *body]
    yield " ".join([*facts, f"*Answers:* {', '.join(answers)}.", f"*Problems:* {refused}."])
    rows = [_parameter(parameter) for parameter in one.get("parameters", ())]
    yield from [table(("parameter", "in", "takes", "what it does"), rows)] if rows else ()


def _parameter(one: dict[str, Any]) -> tuple[str, str, str, str]:
    schema = one["schema"]
    kind = f"{type_of(schema, _named)}{', required' if one.get('required') else ''}"
    return f"`{one['name']}`", one["in"], kind, joined(one.get("description", ""))


def _answer(answer: dict[str, Any]) -> str:
    return _content(answer) if answer.get("content") else ""


def _content(body: dict[str, Any]) -> str:
    (mime, found), *others = body["content"].items()
    names = [mime, *(name for name, _ in others)]
    more = "" if names == ["application/json"] else f" (`{'`, `'.join(names)}`)"
    return (type_of(found["schema"], _named) if references_of(found) else "") + more


def references_of(found: dict[str, Any]) -> bool:
    return bool(found.get("schema", {}).get("$ref") or found.get("schema", {}).get("type") == "object")


def _named(name: str) -> str:
    return f"[{name}]({ELSEWHERE.get(name, f'#{name.lower()}')})"


def _reached(operations: list[dict[str, Any]], parts: dict[str, Schema]) -> set[str]:
    """Schemas that operations name, and those that these name, but for those with a page of their own."""
    found: set[str] = set()
    todo = [name for one in operations for name in references(one)]
    while todo:
        name = todo.pop()
        if name in parts and name not in found and name not in ELSEWHERE:
            found.add(name)
            todo += references(parts[name])
    return found


def _part(name: str, schema: Schema) -> Iterator[str]:
    yield f"### {name}"
    if schema.get("description"):
        yield joined(schema["description"])
    if "properties" not in schema:
        yield type_of(schema, _named)
        return
    required = schema.get("required", ())
    rows = [
        (f"`{field}`", type_of(one, _named), _default(one, field in required), joined(one.get("description", "")))
        for field, one in schema["properties"].items()
    ]
    yield table(("field", "takes", "default", "what it is"), rows)


def _default(schema: Schema, required: bool) -> str:
    return default_of(schema, required=required).removeprefix("default ").replace("required", "")
