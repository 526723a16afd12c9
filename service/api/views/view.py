"""What all answers share."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError


class View(BaseModel):
    """An answer. Numbers that JSON has no form for are the words NaN, Infinity and -Infinity."""

    model_config = ConfigDict(ser_json_inf_nan="strings", use_attribute_docstrings=True)


class NonFinite(StrEnum):
    """A number that JSON has no form for, as a word."""

    NAN = "NaN"
    INFINITY = "Infinity"
    MINUS_INFINITY = "-Infinity"


Number = float | NonFinite
"""A measured value, which may be anything."""


AnyView = TypeVar("AnyView", bound=BaseModel)


def read(kind: type[AnyView], stored: Any) -> AnyView | None:
    """None for a value that another version stored in another form; the rest of the job is shown anyway."""
    try:
        return kind.model_validate(stored)
    except ValidationError:
        return None
