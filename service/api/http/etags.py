"""Entity tags: 304 if nothing changed (If-None-Match), and changes only to the version the client knows (If-Match)."""

from __future__ import annotations

import hashlib
import re

from fastapi import Request, Response

from syncnorm.service.api.http.errors import ApiError
from syncnorm.service.jobs.job import Job

_TAG = re.compile(r'(?:W/)?"[^"]*"')


def digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()[:16]


def job_tag(job: Job, body: bytes) -> str:
    """`"7.93f0…"`: the version of the job, then what else is shown of it, for progress moves without a version.

    If-Match compares the version alone, so `"7"` is as good.
    """
    return f'"{job.version}.{digest(body)}"'


def unless_unchanged(request: Request, answer: Response) -> Response:
    """The answer with an ETag, or 304 where If-None-Match names it (weak comparison, a list, `*`)."""
    tag = answer.headers.setdefault("ETag", f'"{digest(bytes(answer.body))}"')
    if not is_known(request, tag):
        return answer
    kept = {name: answer.headers[name] for name in ("ETag", "Vary") if name in answer.headers}
    return Response(status_code=304, headers=kept)


def is_known(request: Request, tag: str) -> bool:
    """Whether If-None-Match names this version."""
    given = ", ".join(request.headers.getlist("if-none-match"))
    return bool(given) and (given.strip() == "*" or _opaque(tag) in map(_opaque, _TAG.findall(given)))


def _opaque(tag: str) -> str:
    return tag.removeprefix("W/")


def check_match(request: Request, job: Job) -> None:
    """Raises: ApiError 412 where If-Match is there, and names another version of the job (a list, or `*`)."""
    given = ", ".join(request.headers.getlist("if-match"))
    if not given or given.strip() == "*":
        return
    # Weak tags never match here (RFC 9110, section 13.1.1).
    versions = [tag[1:-1].partition(".")[0] for tag in _TAG.findall(given) if not tag.startswith("W/")]
    if str(job.version) not in versions:
        detail = f'The job has changed since: If-Match must name its ETag "{job.version}", got {given[:200]}.'
        raise ApiError(412, "precondition_failed", detail)
