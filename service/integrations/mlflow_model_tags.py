"""Asks MLflow for the tags of a model by its URI (mlflow 3.17). Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

Request = tuple[str, dict[str, Any]]


class _Tag(BaseModel):
    key: str
    value: str = ""


class _Tagged(BaseModel):
    tags: list[_Tag] = []


def model_request(uri: str) -> Request:
    """Path and parameters of the request for `models:/NAME/3`, `models:/NAME/latest`, `models:/NAME@ALIAS` or
    `models:/m-…`."""
    name = uri.removeprefix("models:/")
    if "@" in name:
        title, _, alias = name.rpartition("@")
        return "registered-models/alias", {"name": title, "alias": alias}
    title, slash, version = name.rpartition("/")
    if not slash:
        return f"logged-models/{name}", {}
    if version == "latest":
        return "model-versions/search", {"filter": f"name = '{title}'", "max_results": 1}
    return "model-versions/get", {"name": title, "version": version}


def tags_in(answer: Mapping[str, Any]) -> dict[str, str] | None:
    """The tags in an answer; None if it holds no model."""
    model = answer.get("model_version") or answer.get("model", {}).get("info")
    versions = answer.get("model_versions")
    if model is None and isinstance(versions, list) and versions:
        model = versions[0]
    if model is None:
        return None
    try:
        return {tag.key: tag.value for tag in _Tagged.model_validate(model).tags}
    except ValidationError:
        return {}
