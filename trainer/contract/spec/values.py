"""The kinds of values that fields of the job spec take."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from syncnorm.trainer.contract.bounds import MOST_EPOCHS, MOST_STEPS, MOST_WORKERS

NAME = r"^[A-Za-z0-9][A-Za-z0-9 ._/-]*$"
Name = Annotated[str, StringConstraints(min_length=1, max_length=120, pattern=NAME)]
ClassPath = Annotated[str, StringConstraints(max_length=256, pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$")]
Label = Annotated[str, StringConstraints(max_length=120, pattern=r"^[^\x00-\x1f]*$")]
EnvName = Annotated[str, StringConstraints(max_length=120, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Steps = Annotated[int, Field(ge=1, le=MOST_STEPS)]
Epochs = Annotated[int, Field(ge=1, le=MOST_EPOCHS)]
Workers = Annotated[int, Field(ge=1, le=MOST_WORKERS)]
Large = 1e12
PositiveFloat = Annotated[float, Field(gt=0, le=Large)]
NonNegative = Annotated[float, Field(ge=0, le=Large)]
MetricName = Annotated[str, StringConstraints(min_length=1, max_length=250)]
ScoreName = Annotated[str, StringConstraints(max_length=120, pattern=r"^[A-Za-z]\w*$")]
KindName = Annotated[str, StringConstraints(max_length=64)]
Glob = Annotated[str, StringConstraints(min_length=1, max_length=256)]
ModulePath = Annotated[str, StringConstraints(max_length=256, pattern=r"^\w+(\.\w+)*$")]


class Part(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Every(Part):
    """A period, in epochs or in optimizer steps. Give exactly one of them."""

    epochs: Epochs | None = None
    """Every so many epochs, at their end. Default: none."""
    steps: Steps | None = None
    """Every so many optimizer steps, counted from the start of training. Default: none."""

    @model_validator(mode="after")
    def _one_unit(self) -> Every:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("exactly one of epochs and steps must be given")
        return self


class Moment(Part):
    """A moment of training, in epochs or in optimizer steps. Give exactly one of them."""

    epochs: Epochs | None = None
    """Once so many epochs are over. Default: none."""
    steps: Steps | None = None
    """Once so many optimizer steps are done. Default: none."""

    @model_validator(mode="after")
    def _one_unit(self) -> Moment:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("exactly one of epochs and steps must be given")
        return self

    def is_over(self, epochs: int, steps: int) -> bool:
        """Whether training that has finished so many epochs and steps has reached it."""
        return epochs >= self.epochs if self.epochs is not None else steps >= (self.steps or 0)

    def __str__(self) -> str:
        unit, number = ("epoch", self.epochs) if self.epochs is not None else ("step", self.steps)
        return f"{number} {unit}" + ("" if number == 1 else "s")
