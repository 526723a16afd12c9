"""Parts of the OpenAPI document that many operations share: tags, parameters, headers and problems."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from syncnorm.service.api.http.errors import MEDIA_TYPE, TITLES

ABOUT = """Distributed training whose subject is normalization: submit a job, follow it, and fetch the trained model.

Every answer of 4xx and 5xx is `application/problem+json` (RFC 9457). HEAD works wherever GET does, and OPTIONS lists
the methods of a path. Unknown query parameters are refused."""
TAGS = {
    "jobs": "Submit, follow and control training jobs.",
    "studies": "Families of jobs over a grid and seeds, with a report that compares them.",
    "catalog": "Models, data sets and normalizations that a spec may name, and the hosts of the cluster.",
    "packages": "User code, uploaded once under the digest of its content.",
    "secrets": "Environment variables of jobs that must stay secret. Their values are never shown again.",
    "tokens": "Access tokens for other people. Admins only.",
    "audit": "Who did what, for admins.",
    "health": "For load balancers and Prometheus. Needs no token.",
}
SECURITY = {
    "token": {
        "type": "http",
        "scheme": "bearer",
        "description": "A token as `syncnorm token create` makes it, with the scopes read, submit or admin. "
        "Not needed where the operator has switched authentication off.",
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
    "description": "ETags that you have already, or *. If one of them is current, the answer is 304 without a body.",
    "schema": {"type": "string"},
}
HEADERS: dict[str, dict[str, Any]] = {
    "X-Request-Id": {"description": "Names this request in the service's log.", "schema": _TEXT},
    "ETag": {
        "description": "Version of the answer, for If-None-Match. For a job also for If-Match.",
        "schema": _TEXT,
    },
    "Location": {"description": "Path of the new resource.", "schema": {"type": "string", "format": "uri-reference"}},
    "Idempotency-Replayed": {
        "description": "`true` if this is the earlier answer to the same Idempotency-Key.",
        "schema": {"type": "string", "enum": ["true"]},
    },
    "Retry-After": {
        "description": "Seconds to wait before you try again.",
        "schema": {"type": "integer", "minimum": 0},
    },
    "WWW-Authenticate": {"description": "How to authenticate.", "schema": _TEXT},
    "Allow": {"description": "The methods that the path has.", "schema": _TEXT},
    "Accept-Ranges": {"description": "`bytes`: you can ask for a part with Range.", "schema": _TEXT},
    "Content-Range": {"description": "Which bytes of how many, as `bytes 0-99/1000`.", "schema": _TEXT},
    "Content-Disposition": {"description": "The name to save the file under.", "schema": _TEXT},
    "Repr-Digest": {"description": "SHA-256 of the whole file (RFC 9530), as `sha-256=:…:`.", "schema": _TEXT},
    "Link": {"description": 'For a page in text or NDJSON: address of the next page (`rel="next"`).', "schema": _TEXT},
}
_MEANINGS = {
    400: "The body is not JSON.",
    401: "A token is missing, or is not valid.",
    403: "The token lacks the scope, the operator has switched this off, or the request came from another website.",
    404: "It does not exist, or it belongs to another owner.",
    405: "The path does not have this method. Allow lists those it has.",
    406: "Accept names none of the available media types; `available` lists them.",
    409: "The state does not allow this. `state` is the current one, `allowed` is what it allows.",
    410: "The Idempotency-Key belongs to a job that was deleted.",
    412: "If-Match names another version.",
    413: "The body is too large.",
    415: "The Content-Type is not the one that this operation takes.",
    416: "Range begins behind the end of the file. Content-Range has its size.",
    422: "A value is not valid. `errors` says which and why.",
    428: "If-Match is missing.",
    429: "Too many requests, or too many unfinished jobs.",
    500: "Internal error. Search the service log for the request id.",
    503: "The database, the storage, Ray or MLflow is unavailable. Try again later.",
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
    own = {401: ["WWW-Authenticate"], 405: ["Allow"], 416: ["Content-Range"]}
    own |= {each: ["Retry-After"] for each in (429, 503)}
    return {
        "description": meaning,
        "headers": header_refs("X-Request-Id", *own.get(status, [])),
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}},
    }
