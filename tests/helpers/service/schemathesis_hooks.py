"""Loaded by the `st` command: what it can't know from the OpenAPI document, and a check of our own."""

from __future__ import annotations

import hashlib
import io
import os
import random
import zipfile
from typing import Any

import schemathesis
from hypothesis import strategies as st

IDS = os.environ.get("SYNCNORM_TEST_IDS", "").split(",")
"""Of jobs and studies that are there."""
SEED = os.environ.get("SYNCNORM_TEST_SEED", "")
_MEANING = {
    "invalid_spec",
    "invalid_value",
    "invalid_cursor",
    "invalid_package",
    "wrong_digest",
    "idempotency_key_reused",
}
"""Codes of 422 for what no schema can say: fields that do not go together, a cursor that nobody gave out."""


def _archive(name: str, content: bytes) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr(name, content)
    return made.getvalue()


_NAMES = st.from_regex(r"[a-z]{1,9}\.py", fullmatch=True)
schemathesis.openapi.media_type("application/zip", st.binary() | st.builds(_archive, _NAMES, st.binary(max_size=99)))


@schemathesis.serializer("application/zip")
def as_it_is(_context: object, value: bytes) -> bytes:
    return value


def _is_valid(case: Any) -> bool:
    return case.meta is not None and case.meta.generation.mode.is_positive


def _chance(case: Any) -> random.Random:
    """Numbers of this request's own: Hypothesis starts the common ones anew for every example, so that each of them
    would draw the same, and repeats a request to shrink it."""
    return random.Random(repr((SEED, case.method, case.path, case.path_parameters, case.query, case.body)))


@schemathesis.hook
def before_call(_context: object, case: Any, _kwargs: dict[str, Any]) -> None:
    """Half of the valid requests are about what is there; packages lie under their own digest."""
    if not _is_valid(case):
        return
    chance = _chance(case)
    for name, kind in (("job_id", "job_"), ("study_id", "study_")):
        there = [one for one in IDS if one.startswith(kind)]
        if name in case.path_parameters and there and chance.random() < 0.5:
            case.path_parameters[name] = chance.choice(there)
    if "path" in case.path_parameters and chance.random() < 0.5:
        case.path_parameters["path"] = "spec.yaml"
    if "sha256" in case.path_parameters and isinstance(case.body, bytes):
        case.path_parameters["sha256"] = hashlib.sha256(case.body).hexdigest()


def _is_about_meaning(error: dict[str, str]) -> bool:
    # NUL and a token that has expired are valid to a schema; so is 1.0 as an integer, which a strict model refuses.
    return any(word in error["detail"] for word in ("NUL", "valid integer")) or error["pointer"] == "/expires_at"


@schemathesis.check
def refusal_of_a_valid_request_is_about_its_meaning(_context: object, response: Any, case: Any) -> None:
    if _is_valid(case) and response.status_code == 422:
        problem = response.json()
        assert problem["code"] in _MEANING or all(map(_is_about_meaning, problem["errors"])), problem
    if _is_valid(case) and response.status_code == 412:
        assert case.method in ("PATCH", "DELETE")
