"""The OpenAPI document: FastAPI's description of the routes, completed with the rules that hold for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute, RouteContext, iter_route_contexts

from syncnorm.service.api import openapi_components as shared
from syncnorm.service.api.dependencies import SCOPE_OF
from syncnorm.service.api.http.errors import ProblemDetails
from syncnorm.service.jobs.study_spec import StudySpec
from syncnorm.trainer.contract.spec import ExportSpec, JobSpec

_REF = "#/components/schemas/{model}"
Operation = dict[str, Any]


def operation_id(route: APIRoute) -> str:
    """Name of the function, with its noun where it is a verb or the noun alone: submit_job, get_events."""
    if "_" in route.name:
        return route.name
    if "GET" in (route.methods or ()):
        return f"get_{route.name}"
    return f"{route.name}_{'study' if 'studies' in route.tags else 'job'}"


def install(app: FastAPI) -> None:
    """Serve the completed document at /openapi.json."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _document(app: FastAPI) -> dict[str, Any]:
    made = get_openapi(
        title=app.title,
        version=app.version,
        summary=app.summary,
        description=shared.ABOUT,
        routes=app.routes,
        tags=[{"name": name, "description": text} for name, text in shared.TAGS.items()],
        servers=[{"url": "/", "description": "This service"}],
        contact={"name": "The operator of this service"},
        license_info={"name": "Apache License 2.0", "identifier": "Apache-2.0"},
    )
    components = made["components"]
    schemas = components["schemas"] | dict(_schemas())
    components["schemas"] = {name: _maps(schemas[name]) for name in sorted(schemas) if "ValidationError" not in name}
    components |= {
        "headers": shared.HEADERS,
        "responses": shared.problem_responses(),
        "securitySchemes": shared.SECURITY,
    }
    for route in iter_route_contexts(app.routes):
        if isinstance(route.original_route, APIRoute) and route.original_route.include_in_schema:
            for method in route.methods or ():
                _complete(made["paths"][route.path_format][method.lower()], route, method)
    made["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]["application/json"]["example"] = shared.EXAMPLE_JOB
    return made


def _schemas() -> Iterator[tuple[str, dict[str, Any]]]:
    """Models without a signature: bodies that the service reads itself, and problems."""
    for model in (JobSpec, StudySpec, ExportSpec, ProblemDetails):
        schema = model.model_json_schema(ref_template=_REF)
        yield from schema.pop("$defs", {}).items()
        yield model.__name__, schema


def _maps(schema: Any) -> Any:
    """The schema with maps as `propertyNames` and `additionalProperties`.

    pydantic writes a map with constrained keys as `patternProperties`, which lets all other keys pass.
    """
    if isinstance(schema, list):
        return [_maps(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _maps(value) for key, value in schema.items()}
    if len(patterns := made.pop("patternProperties", {})) == 1:
        ((pattern, made["additionalProperties"]),) = patterns.items()
        made["propertyNames"] = {"pattern": pattern, **made.get("propertyNames", {})}
    return made


def _complete(operation: Operation, route: RouteContext, method: str) -> None:
    """Add the parts that are common to all operations of this kind."""
    scope = next((SCOPE_OF[one.call] for one in route.dependant.dependencies if one.call in SCOPE_OF), None)
    if scope is not None:
        operation["security"] = [{"token": [scope]}]
    _complete_parameters(operation, reads=method == "GET" and scope is not None)
    responses = operation["responses"]
    for status in _problem_statuses(operation, method, scope is not None):
        if "model" not in (route.responses or {}).get(status, {}):
            responses[str(status)] = shared.problem_ref(status)
    for status, response in responses.items():
        if "$ref" not in response:
            response.setdefault("headers", {}).update(shared.header_refs(*_headers(operation, method, status, scope)))
    if method == "GET" and scope is not None:
        headers = shared.header_refs("X-Request-Id", "ETag")
        responses["304"] = {
            "description": "Nothing changed: If-None-Match names the current version.",
            "headers": headers,
        }
    operation["responses"] = dict(sorted(responses.items()))


def _complete_parameters(operation: Operation, *, reads: bool) -> None:
    parameters = operation.setdefault("parameters", [])
    for parameter in parameters:
        parameter["schema"] = _without_null(parameter["schema"])
        if about := shared.PATH_PARAMETERS.get(parameter["name"]):
            parameter["description"] = about["description"]
            parameter["schema"]["pattern"] = about["pattern"]
        if parameter["name"] == "If-Match" and "428" in operation["responses"]:
            parameter["required"] = True
    if reads:
        parameters.append(shared.IF_NONE_MATCH)


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A parameter that may be left out can't be sent as null."""
    kept = [one for one in schema.get("anyOf", []) if one != {"type": "null"}]
    if len(kept) != 1:
        return schema
    return {**{key: value for key, value in schema.items() if key not in ("anyOf", "default")}, **kept[0]}


def _problem_statuses(operation: Operation, method: str, is_guarded: bool) -> set[int]:
    """Declared with the route, or common to all operations like this one."""
    found = {int(status) for status in operation["responses"] if int(status) >= 400} | {422, 500, 503}
    in_path = any(parameter["in"] == "path" for parameter in operation["parameters"])
    if is_guarded:
        found |= {401, 403, 429} | ({406} if method == "GET" else set())
    if in_path and method != "PUT":
        found.add(404)
    if "requestBody" in operation:
        found |= {400, 413, 415}
    return found


def _headers(operation: Operation, method: str, status: str, scope: str | None) -> Iterator[str]:
    yield "X-Request-Id"
    if scope is None:
        return
    if "206" in operation["responses"] and status in ("200", "206"):
        yield from ("Accept-Ranges", "Content-Disposition", "Repr-Digest")
        yield from ("ETag", "Content-Range") if status == "206" else ()
    if (method == "GET" and status == "200") or (method == "PATCH" and status == "200"):
        yield "ETag"
    if "application/x-ndjson" in operation["responses"][status].get("content", {}):
        yield "Link"
    if method == "POST" and status == "201":
        yield "Location"
        if any(parameter["name"] == "Idempotency-Key" for parameter in operation["parameters"]):
            yield "Idempotency-Replayed"
