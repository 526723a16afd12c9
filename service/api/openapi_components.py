"""Parts of the OpenAPI document that many operations share: tags, parameters, headers and problems."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from syncnorm.service.api.http.errors import MEDIA_TYPE, TITLES

ABOUT = """Distributed training whose subject is normalization: submit a job, follow it, fetch what it gave.

Every answer of 4xx and 5xx is `application/problem+json` (RFC 9457). HEAD works wherever GET does, and OPTIONS tells
the methods of a path. Query parameters that an operation does not have are refused."""
TAGS = {
    "jobs": "Submit, follow and steer training jobs.",
    "studies": "Families of jobs over a grid and seeds, with a report that compares them.",
    "catalog": "What a spec may name, and the cluster there is.",
    "packages": "User code, uploaded once under the digest of its content.",
    "secrets": "Values for the environment of jobs. They are never shown again.",
    "tokens": "Access for other people. Admins only.",
    "audit": "Who did what, for admins.",
    "health": "For load balancers and Prometheus. Needs no token.",
}
SECURITY = {
    "token": {
        "type": "http",
        "scheme": "bearer",
        "description": "A token as `syncnorm token create` makes it, with the scopes read, submit or admin. "
        "Not asked for where the operator has authentication off.",
    }
}
EXAMPLE_JOB = {
    "name": "digits-sync-batch",
    "model": {"name": "resnet", "init_args": {"depth": 14, "width": 16}},
    "data": {"name": "digits", "batch_size": 32},
    "norm": {"kind": "sync_batch"},
    "resources": {"workers": 2},
}
PATH_PARAMETERS: dict[str, dict[str, Any]] = {
    "job_id": {"description": "Id of a job.", "pattern": "^job_[0-9a-z]{26}$"},
    "study_id": {"description": "Id of a study.", "pattern": "^study_[0-9a-z]{26}$"},
}
_TEXT = {"type": "string"}
IF_NONE_MATCH = {
    "name": "If-None-Match",
    "in": "header",
    "required": False,
    "description": "ETags that you have already, or *. Where one is still right, the answer is 304 without a body.",
    "schema": {"type": "string"},
}
HEADERS: dict[str, dict[str, Any]] = {
    "X-Request-Id": {"description": "Names this request in the service's log.", "schema": _TEXT},
    "ETag": {
        "description": "Version of what is shown, for If-None-Match; of a job, for If-Match, too.",
        "schema": _TEXT,
    },
    "Location": {"description": "Path of what was made.", "schema": {"type": "string", "format": "uri-reference"}},
    "Idempotency-Replayed": {
        "description": "`true` where this is the answer given before under the same Idempotency-Key.",
        "schema": {"type": "string", "enum": ["true"]},
    },
    "Retry-After": {"description": "Seconds to wait before trying again.", "schema": {"type": "integer", "minimum": 0}},
    "WWW-Authenticate": {"description": "How to authenticate.", "schema": _TEXT},
    "Allow": {"description": "The methods that the path has.", "schema": _TEXT},
    "Link": {"description": 'Of a page in text or NDJSON: where the next one is (`rel="next"`).', "schema": _TEXT},
}
_MEANINGS = {
    400: "The body is not JSON.",
    401: "A token is missing, or is not valid.",
    403: "The token has not the scope, the operator has switched this off, or the request came from a foreign page.",
    404: "There is no such thing, or it belongs to somebody else.",
    405: "The path has other methods. Allow names them.",
    406: "Accept takes none of the forms there are.",
    409: "The state does not allow it. `state` and `allowed` say what it is and what it allows.",
    410: "The Idempotency-Key stands for a job that was deleted.",
    412: "If-Match names another version.",
    413: "The body is too large.",
    415: "The body has another content type.",
    422: "A value can't be taken. `errors` says which and why.",
    428: "If-Match is missing.",
    429: "Too many requests, or too many unfinished jobs.",
    500: "Internal error. Search the service log for the request id.",
    503: "Something that this needs does not answer now.",
}


def header_refs(*names: str) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def problem_ref(status: int) -> dict[str, str]:
    return {"$ref": f"#/components/responses/{_name(status)}"}


def problem_responses() -> dict[str, Any]:
    return {_name(status): _problem(status, meaning) for status, meaning in _MEANINGS.items()}


def _name(status: int) -> str:
    return (TITLES.get(status) or HTTPStatus(status).phrase).replace(" ", "")


def _problem(status: int, meaning: str) -> dict[str, Any]:
    own = {401: ["WWW-Authenticate"], 405: ["Allow"], 429: ["Retry-After"], 503: ["Retry-After"]}
    return {
        "description": meaning,
        "headers": header_refs("X-Request-Id", *own.get(status, [])),
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}},
    }
