"""What arguments of built-in models and data have in common."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class InitArgs(BaseModel):
    """Arguments of a built-in model or data set. The first line of a subclass is the summary in catalogs."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


Positive = Annotated[int, Field(ge=1, le=65_536)]
Samples = Annotated[int, Field(ge=1, le=10**9)]
Column = Annotated[str, Field(min_length=1, max_length=256)]
LARGEST_SAMPLE = 2**31
Fraction = Annotated[float, Field(ge=0, lt=1)]
WholeSampleTask = Literal["classification", "regression", "multilabel"]
Activation = Literal["relu", "silu", "gelu", "leaky_relu", "tanh"]
