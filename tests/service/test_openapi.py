"""The OpenAPI document is true: whatever is sent, answers are what it says, and never a 5xx."""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.amounts import amount
from tests.service.api import ADMIN, SPEC, api

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
NOT_HEALTH = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]


@schemathesis.serializer("application/zip")
def _as_it_is(_context: object, value: bytes) -> bytes:
    return value


@contextmanager
def guarded_app() -> Iterator[FastAPI]:
    """With some jobs in it."""
    with tempfile.TemporaryDirectory() as folder, api(Path(folder), auth=True) as (client, world):
        for labels in ({}, {"outcome": "user_error"}, {"works": "999"}):
            client.post("/v1/jobs", json=SPEC | {"labels": labels})
        for _ in range(6):
            world.step()
        yield client.app  # type: ignore[misc]


@pytest.fixture(scope="module")
def app() -> Iterator[FastAPI]:
    with guarded_app() as made:
        yield made


def send_anything(app: FastAPI, examples: int) -> int:
    """Send `examples` made-up requests to every operation; how many operations there are."""
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    operations = [found.ok() for found in schema.get_all_operations()]
    for operation in operations:

        @given(case=operation.as_strategy())
        @settings(max_examples=examples, deadline=None, suppress_health_check=NOT_HEALTH, database=None)
        def send(case: Any) -> None:
            case.call_and_validate(checks=CHECKS, headers={"Authorization": f"Bearer {ADMIN}"})

        send()
    return len(operations)


def test_answers_are_as_documented(app: FastAPI) -> None:
    assert send_anything(app, examples=3) > 20


@pytest.mark.chaos
def test_answers_are_as_documented_long(app: FastAPI) -> None:
    assert send_anything(app, examples=amount(1000)) > 20


def test_undocumented_answer_would_be_noticed(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app.state.context.store, "count_by_state", lambda: 1 / 0)

    with pytest.raises(Exception) as noticed:  # one error, or a group of them
        send_anything(app, examples=1)

    assert "division by zero" in "".join(traceback.format_exception(noticed.value))


def test_every_route_of_the_api_is_documented(app: FastAPI) -> None:
    paths = app.openapi()["paths"]

    routes = {route.path for route in app.routes if getattr(route, "include_in_schema", False)}
    assert routes <= set(paths)
    assert not any(path.startswith("/internal") for path in paths)
