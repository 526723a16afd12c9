"""A number in a body must be one, as the OpenAPI document says: false is no 0, and "3" is no 3."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import pytest
from fastapi.routing import APIRoute, iter_route_contexts
from fastapi.testclient import TestClient
from pydantic import BaseModel

NUMBERS = {bool, int, float}


def parts(annotation: Any) -> Iterator[Any]:
    """All types that an annotation is made of."""
    yield annotation
    for part in get_args(annotation):
        yield from parts(part)


def models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models of a body, at any depth."""
    for part in parts(annotation):
        if isinstance(part, type) and issubclass(part, BaseModel):
            yield part
            for field in part.model_fields.values():
                yield from models(field.annotation)


def numbers_of(model: type[BaseModel]) -> list[str]:
    return [name for name, field in model.model_fields.items() if not NUMBERS.isdisjoint(parts(field.annotation))]


def test_bodies_with_numbers_are_read_strictly(http: TestClient) -> None:
    routes = [route.original_route for route in iter_route_contexts(http.app.routes)]  # type: ignore[attr-defined]
    public = [route for route in routes if isinstance(route, APIRoute) and route.include_in_schema]
    bodies = [route.body_field.field_info.annotation for route in public if route.body_field is not None]

    found = {model for body in bodies for model in models(body) if numbers_of(model)}

    assert found  # else this test sees nothing
    assert {model.__name__ for model in found if not model.model_config.get("strict")} == set()


@pytest.mark.parametrize(
    "options",
    [{"ranks": [False]}, {"ranks": ["0"]}, {"steps": True}, {"steps": "3"}, {"seconds": True}, {"seconds": "5"}],
)
def test_profile_takes_numbers_alone(http: TestClient, options: dict[str, Any]) -> None:
    answer = http.post("/v1/jobs/job_00000000000000000000000000/profile", json=options)

    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request"), answer.json()
