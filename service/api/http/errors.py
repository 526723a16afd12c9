"""Every answer that is not 2xx: application/problem+json (RFC 9457), the framework's own included."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from syncnorm.service.api.http.methods import allowed
from syncnorm.service.backend_errors import BackendError, DatabaseUnavailableError
from syncnorm.trainer.contract.spec_reader import one_a_field
from syncnorm.trainer.errors import Problem, StorageError

logger = logging.getLogger(__name__)
MEDIA_TYPE = "application/problem+json"
_PATH = "/:@!$&'()*+,;=-._~"
"""What a path may hold unescaped (RFC 3986)."""


class FieldProblem(BaseModel):
    """One thing that is wrong in a request."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    pointer: str
    """Where: a JSON pointer into the body (RFC 6901), or `query:NAME`, `path:NAME` or `header:NAME`."""
    detail: str
    """What must hold, and what we got."""


class ProblemDetails(BaseModel):
    """Every answer of 4xx and 5xx (RFC 9457). `code` is stable and meant for programs; `detail` is for people."""

    type: str
    """The code as a URN."""
    title: str
    """The HTTP status in words."""
    status: int
    """The HTTP status."""
    detail: str
    """What is wrong and what to change, for people."""
    instance: str
    """Path of the request."""
    code: str
    """What is wrong, as a word for programs; it does not change between versions."""
    request_id: str
    """Names this request in the service log. Also in the header X-Request-Id."""
    errors: list[FieldProblem] = []
    """Each thing that is wrong, with its place, if the request can't be accepted."""
    state: str | None = None
    """With 409 `state_conflict`: the state that does not allow the request."""
    allowed: list[str] | None = None
    """With 409 `state_conflict`: what that state allows."""
    available: list[str] | None = None
    """With 406: the media types you can ask for."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class ApiError(Exception):
    """An answer other than 2xx. extra: further members, for example the state of a conflict."""

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


def refused(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For `responses` of a route: problems besides those that all routes have (`syncnorm.service.api.openapi`)."""
    return {status: {"description": ""} for status in statuses}


def not_found(what: str, name: str) -> ApiError:
    return ApiError(404, "not_found", f"There is no {what} {name[:120]}.")


def bad_spec(problems: Sequence[Problem], *, dry_run: bool = False) -> ApiError:
    errors = [FieldProblem(pointer=pointer(problem.path), detail=problem.message) for problem in problems]
    count = f"{len(errors)} problems" if len(errors) > 1 else "1 problem"
    detail = f"The job spec has {count}." if dry_run else f"The job spec has {count}; nothing was stored."
    return ApiError(422, "invalid_spec", detail, errors=errors)


def pointer(path: str) -> str:
    """A dotted path as a JSON pointer."""
    return "/" + _escaped(path).replace(".", "/") if path else ""


def _escaped(text: str) -> str:
    return text.replace("~", "~0").replace("/", "~1")


ProblemPage = Callable[[Request, ApiError], Response | None]
"""Renders an error for people; None: the request wants it as JSON."""


def install(app: FastAPI, page: ProblemPage) -> None:
    """page: asked first for each problem."""
    app.state.problem_page = page
    app.add_exception_handler(ApiError, _own)  # type: ignore[arg-type]
    app.add_exception_handler(HTTPException, _framework)  # type: ignore[arg-type]
    app.add_exception_handler(RequestValidationError, _validation)  # type: ignore[arg-type]
    app.add_exception_handler(StorageError, _storage)  # type: ignore[arg-type]
    app.add_exception_handler(BackendError, _outside)  # type: ignore[arg-type]
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(Exception, _unexpected)


async def _own(request: Request, error: ApiError) -> Response:
    return _answer(request, error)


async def _framework(request: Request, error: HTTPException) -> Response:
    path, headers, detail = request.scope["path"], dict(error.headers or {}), str(error.detail)
    if error.status_code == 404:
        detail = f"There is nothing at {path[:200]}." + (" Remove the trailing slash." if path.endswith("/") else "")
    elif error.status_code == 405:
        headers["Allow"] = ", ".join(allowed(request.scope))
        detail = f"{request.method} is not allowed at {path[:200]}. Allowed: {headers['Allow']}."
    code = _CODES.get(error.status_code) or _title(error.status_code).lower().replace(" ", "_")
    return _answer(request, ApiError(error.status_code, code, detail, headers=headers))


_CODES = {413: "request_entity_too_large", 422: "invalid_request"}
TITLES = {413: "Content Too Large", 416: "Range Not Satisfiable", 422: "Unprocessable Content"}
"""Titles whose wording differs between Python versions."""


def _title(status: int) -> str:
    return TITLES.get(status) or HTTPStatus(status).phrase


async def _validation(request: Request, error: RequestValidationError) -> Response:
    errors = [_field_problem(item) for item in one_a_field(error.errors())]
    return _answer(
        request, ApiError(422, "invalid_request", "The request is not valid; `errors` says where.", errors=errors)
    )


def _field_problem(item: Mapping[str, Any]) -> FieldProblem:
    place, *rest = [str(part) for part in item["loc"]]
    detail = item["msg"].removeprefix("Value error, ")
    if place == "body":
        return FieldProblem(pointer="".join(f"/{_escaped(part)}" for part in rest), detail=detail)
    # Values are quoted from queries and paths only: bodies and headers may hold secrets.
    got = f"; got {item['input'][:100]!r}" if place in ("query", "path") and isinstance(item["input"], str) else ""
    return FieldProblem(pointer=f"{place}:{'.'.join(rest)}", detail=detail + got)


async def _storage(request: Request, error: StorageError) -> Response:
    logger.warning(
        "request answered with 503: the storage is unavailable", extra={**_which(request), "error": str(error)}
    )
    return _answer(request, ApiError(503, "storage_unreachable", str(error), headers={"Retry-After": "10"}))


async def _outside(request: Request, error: BackendError) -> Response:
    code = "database_unavailable" if isinstance(error, DatabaseUnavailableError) else "unreachable"
    logger.warning(
        "request answered with 503: the database, Ray or MLflow is unavailable",
        extra={**_which(request), "error": str(error)},
    )
    return _answer(request, ApiError(503, code, str(error), headers={"Retry-After": "5"}))


async def _gone(request: Request, _: Exception) -> Response:
    """The client has gone, so nobody reads this answer, but it is counted under the right status."""
    return _answer(request, ApiError(408, "request_timeout", "The connection ended before the whole body had arrived."))


async def _unexpected(request: Request, error: Exception) -> Response:
    logger.error("request failed with an internal error", exc_info=error, extra=_which(request))
    detail = "Internal error. Search the service log for this request id."
    # This answer bypasses the middleware, which adds the header to all others.
    headers = {"X-Request-ID": _which(request)["request_id"]}
    return _answer(request, ApiError(500, "internal", detail, headers=headers))


def _which(request: Request) -> dict[str, str]:
    """For the log: the request id is in the answer, too."""
    return {"path": request.scope["path"], "request_id": getattr(request.state, "request_id", "")}


def _answer(request: Request, error: ApiError) -> Response:
    """The error as a page where the request is for one, and as JSON elsewhere."""
    page: Response | None = request.app.state.problem_page(request, error)
    if page is None:
        return problem(request, error)
    request.state.code = error.code  # for the audit
    page.headers.update(error.headers)
    return page


def problem(request: Request, error: ApiError) -> JSONResponse:
    """The error as JSON, also at the address of a page."""
    request.state.code = error.code  # for the audit
    content = problem_details(error, request.scope["path"], _which(request)["request_id"])
    return JSONResponse(content, status_code=error.status, headers=error.headers, media_type=MEDIA_TYPE)


def problem_details(error: ApiError, path: str, request_id: str) -> dict[str, Any]:
    """The body that answers a request for `path` with `error`."""
    details = ProblemDetails(
        type=f"urn:syncnorm:problem:{error.code}",
        title=_title(error.status),
        status=error.status,
        detail=error.detail,
        instance=quote(path, safe=_PATH),
        code=error.code,
        request_id=request_id,
        errors=error.errors,
    )
    return details.model_dump(exclude_none=True) | error.extra
