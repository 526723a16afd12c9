"""The OpenAPI document, made true where FastAPI's own would not be."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from service.errors import MEDIA_TYPE
from service.studies.spec import StudySpec
from trainer.spec import ExportSpec, JobSpec

_REF = "#/components/schemas/{model}"


def install(app: FastAPI) -> None:
    """Serve the corrected document at /openapi.json."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _document(app: FastAPI) -> dict[str, Any]:
    made = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
    schemas = made["components"]["schemas"]
    for body in (JobSpec, StudySpec, ExportSpec):
        schema = body.model_json_schema(ref_template=_REF)
        schemas.update(schema.pop("$defs", {}))
        schemas[body.__name__] = schema
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    made["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    for path, operations in made["paths"].items():
        for operation in operations.values():
            operation["responses"].pop("422", None)  # part of 4XX, and a problem like the others
            operation["responses"] |= {
                code: _problem() for code in ("4XX", "5XX") if path != "/readyz" or code == "4XX"
            }
            if path.startswith("/v1/"):
                operation["security"] = [{"token": []}]
    return made


def _problem() -> dict[str, Any]:
    schema = {"$ref": _REF.format(model="ProblemDetails")}
    return {"description": "A problem (RFC 9457)", "content": {MEDIA_TYPE: {"schema": schema}}}
