"""Reads query strings strictly: a parameter that would have no effect is refused."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import get_origin

from fastapi import Request
from fastapi.dependencies.models import Dependant

from syncnorm.service.api.http.errors import ApiError, FieldProblem

_MOST = 20
Known = Mapping[str, bool]
"""Names of parameters, and whether each may be given several times."""


def parameters_of(dependant: Dependant) -> Known:
    own = {field.alias: get_origin(field.field_info.annotation) is list for field in dependant.query_params}
    return own | {name: many for inner in dependant.dependencies for name, many in parameters_of(inner).items()}


def check_query(request: Request, known: Known) -> None:
    """Raises: ApiError 422 that names every parameter which is unknown, given twice or can't be stored."""
    if not request.scope["query_string"]:
        return
    problems = list(_problems(request, known))
    if problems:
        raise ApiError(
            422, "invalid_request", "The request is not valid; `errors` says where.", errors=problems[:_MOST]
        )


def _problems(request: Request, known: Known) -> Iterator[FieldProblem]:
    given = request.query_params.multi_items()
    for name, count in Counter(name for name, _ in given).items():
        where = f"query:{name[:80]}"
        if name not in known:
            yield FieldProblem(pointer=where, detail=_unknown(name, known))
        elif count > 1 and not known[name]:
            yield FieldProblem(pointer=where, detail=f"may be given once, got it {count} times")
        if any("\x00" in value for key, value in given if key == name):
            yield FieldProblem(pointer=where, detail="must not contain NUL")


def _unknown(name: str, known: Known) -> str:
    if not known:
        return "is not a parameter; this operation takes none"
    meant = difflib.get_close_matches(name, known, 1)
    hint = f"Did you mean {meant[0]}? " if meant else ""
    return f"is not a parameter. {hint}Use one of: {', '.join(sorted(known))}"
