"""What to say of a field that a document may not have: the ones it may have there, and which was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel


def unknown_field(model: type[BaseModel], location: Sequence[str | int]) -> str:
    """location: of the field within a document of this model, as pydantic's errors have it."""
    wrong = str(location[-1])
    known = sorted({name for one in _models_at(model, location[:-1]) for name in one.model_fields})
    meant = difflib.get_close_matches(wrong, known, 1)
    hint = f"did you mean {meant[0]}? " if meant else ""
    return f"is not a known field; {hint}it may be {', '.join(known)}" if known else "is not a known field"


def _models_at(model: type[BaseModel], location: Sequence[str | int]) -> list[type[BaseModel]]:
    """The models that a document may have there; of a union, all of them."""
    found = [model]
    for part in location:
        fields = [one.model_fields[str(part)].annotation for one in found if str(part) in one.model_fields]
        # An index into a list, or the name of a union's member, does not lead to another field.
        found = [inner for annotation in fields for inner in _models_in(annotation)] if fields else found
    return found


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [inner for argument in get_args(annotation) for inner in _models_in(argument)]
