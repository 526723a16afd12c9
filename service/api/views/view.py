"""What all answers share."""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError


class View(BaseModel):
    """An answer. Numbers that JSON has no form for are the words NaN, Infinity and -Infinity."""

    model_config = ConfigDict(ser_json_inf_nan="strings", use_attribute_docstrings=True)


class NonFinite(StrEnum):
    """A number that JSON has no form for, as a word."""

    NAN = "NaN"
    INFINITY = "Infinity"
    MINUS_INFINITY = "-Infinity"


def _worded(value: Any) -> Any:
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return NonFinite.NAN if math.isnan(value) else NonFinite.INFINITY if value > 0 else NonFinite.MINUS_INFINITY


Number = Annotated[float | NonFinite, BeforeValidator(_worded)]
"""A measured value, which may be anything."""


AnyView = TypeVar("AnyView", bound=BaseModel)


def read(kind: type[AnyView], stored: Any) -> AnyView | None:
    """None for a value that another version stored in another form; the rest of the job is shown anyway."""
    try:
        return kind.model_validate(stored)
    except ValidationError:
        return None
