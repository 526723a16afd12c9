"""Every answer that is not 2xx: application/problem+json (RFC 9457), the framework's own included."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from trainer.files import StorageError
from trainer.spec_reader import Problem

logger = logging.getLogger(__name__)
MEDIA_TYPE = "application/problem+json"


class FieldProblem(BaseModel):
    """One thing wrong in a body: where, as a JSON pointer (RFC 6901), and what must hold."""

    pointer: str
    detail: str


class ProblemDetails(BaseModel):
    """RFC 9457. `code` is stable and meant for programs; `detail` for people."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    request_id: str
    errors: list[FieldProblem] = []


class ApiError(Exception):
    """An answer other than 2xx. extra: further members, e.g. the state a conflict is with."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        errors: Sequence[FieldProblem] = (),
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.errors = list(errors)
        self.headers = dict(headers or {})
        self.extra = dict(extra or {})


def not_found(what: str, name: str) -> ApiError:
    return ApiError(404, "not_found", f"There is no {what} {name}.")


def bad_spec(problems: Sequence[Problem]) -> ApiError:
    errors = [FieldProblem(pointer=pointer(problem.path), detail=problem.message) for problem in problems]
    count = f"{len(errors)} problems" if len(errors) > 1 else "1 problem"
    return ApiError(422, "invalid_spec", f"The job spec has {count}; nothing was stored.", errors=errors)


def pointer(path: str) -> str:
    """A dotted path as a JSON pointer."""
    escaped = path.replace("~", "~0").replace("/", "~1")
    return "/" + escaped.replace(".", "/") if path else ""


def install(app: FastAPI) -> None:
    app.add_exception_handler(ApiError, _own)  # type: ignore[arg-type]
    app.add_exception_handler(HTTPException, _framework)  # type: ignore[arg-type]
    app.add_exception_handler(RequestValidationError, _validation)  # type: ignore[arg-type]
    app.add_exception_handler(StorageError, _storage)  # type: ignore[arg-type]
    app.add_exception_handler(Exception, _unexpected)


async def _own(request: Request, error: ApiError) -> JSONResponse:
    return problem(request, error)


async def _framework(request: Request, error: HTTPException) -> JSONResponse:
    status = HTTPStatus(error.status_code)
    details = {
        404: f"There is nothing at {request.url.path}.",
        405: f"{request.method} is not possible at {request.url.path}.",
    }
    detail = details.get(error.status_code, str(error.detail))
    code = status.phrase.lower().replace(" ", "_")
    return problem(request, ApiError(error.status_code, code, detail, headers=error.headers))


async def _validation(request: Request, error: RequestValidationError) -> JSONResponse:
    errors = []
    for item in error.errors():
        place, *rest = [str(part) for part in item["loc"]]
        where = "/" + "/".join(rest) if place == "body" else f"{place}:{'.'.join(rest)}"
        errors.append(FieldProblem(pointer=where, detail=item["msg"]))
    return problem(request, ApiError(422, "invalid_request", "The request can't be read.", errors=errors))


async def _storage(request: Request, error: StorageError) -> JSONResponse:
    logger.warning("the storage can't be used", extra={**_which(request), "error": str(error)})
    return problem(request, ApiError(503, "storage_unreachable", str(error), headers={"Retry-After": "10"}))


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    logger.error("request failed", exc_info=error, extra=_which(request))
    detail = "A defect of the service; the request id finds it in its logs."
    # This answer passes the gate by, which adds the header to all others.
    headers = {"X-Request-ID": _which(request)["request_id"]}
    return problem(request, ApiError(500, "internal", detail, headers=headers))


def _which(request: Request) -> dict[str, str]:
    """For the log: the request id is in the answer, too."""
    return {"path": request.url.path, "request_id": getattr(request.state, "request_id", "")}


def problem(request: Request, error: ApiError) -> JSONResponse:
    details = ProblemDetails(
        type=f"urn:syncnorm:problem:{error.code}",
        title=HTTPStatus(error.status).phrase,
        status=error.status,
        detail=error.detail,
        instance=request.url.path,
        code=error.code,
        request_id=_which(request)["request_id"],
        errors=error.errors,
    )
    content = details.model_dump() | error.extra
    return JSONResponse(content, status_code=error.status, headers=error.headers, media_type=MEDIA_TYPE)
