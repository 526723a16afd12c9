"""Whether the fields of a pydantic model, and of the models inside it, are documented in the string under them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel

_DEFAULT = re.compile(r"Default:\s|No\s+default[.,]|Required\.|The\s+defaults\s")


def nested_models(model: type[BaseModel]) -> set[type[BaseModel]]:
    """The model and every model that its fields lead to."""
    found: set[type[BaseModel]] = set()
    todo = [model]
    while todo:
        one = todo.pop()
        if one not in found:
            found.add(one)
            todo += [inner for field in one.model_fields.values() for inner in _models_in(field.annotation)]
    return found


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)


def undocumented(model: type[BaseModel]) -> list[str]:
    """`Model.field` of every field without a docstring."""
    return sorted(
        f"{one.__name__}.{name}"
        for one in nested_models(model)
        for name, field in one.model_fields.items()
        if not field.description
    )


def without_default(model: type[BaseModel]) -> list[str]:
    """`Model.field` of every field whose docstring does not say what holds where the field is left out."""
    return sorted(
        f"{one.__name__}.{name}"
        for one in nested_models(model)
        for name, field in one.model_fields.items()
        if not _DEFAULT.search(field.description or "")
    )
