"""What is asked of a profile of a running job, and what one rank measured."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from syncnorm.trainer.contract.bounds import Amount, Bytes, Line, Path, Rank, ShortName, Step
from syncnorm.trainer.contract.bounds import Message as Text

LONGEST_S = 60.0
MOST_PROFILED_STEPS = 1000
MOST_LAYERS = 200
"""Of one summary, those that take longest."""
MOST_OPERATORS = 20
MOST_RANKS = 16
"""Ranks that one request may name, and that are profiled if it names none."""
PATIENCE_S = 60.0
"""How long an answer may take besides the time that is profiled: a step may be long, and the trace is uploaded."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, ser_json_inf_nan="strings")


class ProfileOptions(_Part):
    """What to profile: some seconds, or some steps, of some ranks."""

    model_config = ConfigDict(strict=True)

    seconds: Annotated[float, Field(gt=0, le=LONGEST_S)] = 5.0
    """How long, in seconds, up to 60. It ends with the step that is running then. Default: 5, some hundred steps of a
    small network."""
    steps: Annotated[int, Field(ge=1, le=MOST_PROFILED_STEPS)] | None = None
    """Ends it after so many steps, if they take less than `seconds`. Default: null, `seconds` alone counts."""
    ranks: Annotated[list[Rank], Field(min_length=1, max_length=MOST_RANKS)] | None = None
    """Which ranks, up to 16. Default: null, all, and of more than 16 the first 16."""


class ProfileRequest(_Part):
    """The options under a number, with the ranks that they mean."""

    number: Annotated[int, Field(ge=1, le=2**53)]
    seconds: Annotated[float, Field(gt=0, le=LONGEST_S)]
    steps: Annotated[int, Field(ge=1, le=MOST_PROFILED_STEPS)] | None
    ranks: Annotated[list[Rank], Field(max_length=MOST_RANKS)]


class LayerTime(_Part):
    """What one normalization layer takes of a step."""

    path: ShortName
    """Path of its module."""
    forward_ms: Amount
    """Milliseconds a step in its forward."""
    backward_ms: Amount
    """Milliseconds a step in its backward."""
    exchange_ms: Amount
    """Of both, milliseconds in exchanges with other ranks, waiting for them included."""
    share: Amount
    """Forward and backward as a share of the step, 0 to 1."""


class OperatorTime(_Part):
    """What one operator takes of a step."""

    name: ShortName
    """Name in the trace. On a GPU, that of a kernel."""
    calls: Amount
    """Calls a step."""
    self_ms: Amount
    """Milliseconds a step, without those of the operators that it calls."""
    share: Amount
    """The same as a share of the step, 0 to 1."""


class ProfileSummary(_Part):
    """What one rank measured, by its trace. Times are of one step, in the mean over all that were measured."""

    device: Literal["cpu", "cuda"]
    """Whose time it is. cuda: of the kernels."""
    first_step: Step
    """The optimizer step before the first one that was measured."""
    steps: Step
    """Training steps that were measured. With `train.accumulate`, each micro-batch counts."""
    step_ms: Amount
    """Milliseconds from the start of a batch to its end."""
    between_ms: Amount
    """Milliseconds from the end of a batch to the start of the next one: data, callbacks, checkpoints."""
    forward_ms: Amount
    """Milliseconds in the forward of all normalization layers."""
    backward_ms: Amount
    """Milliseconds in the backward of all normalization layers."""
    norm_share: Amount
    """Both as a share of the step, 0 to 1."""
    exchange_ms: Amount
    """Milliseconds in exchanges of statistics, waiting for other ranks included."""
    exchange_share: Amount
    """The same as a share of the step: what `norm/sync_share` is for a whole epoch."""
    layers: Annotated[list[LayerTime], Field(max_length=MOST_LAYERS)]
    """Every normalization layer, the longest first."""
    layers_left_out: Step = 0
    """Layers that are in the sums, but not in the list."""
    operators: Annotated[list[OperatorTime], Field(max_length=MOST_OPERATORS)]
    """The operators that take longest by themselves."""


class ProfileAnswer(_Part):
    """What one rank has to say to a request. trace: its path in the run's artifacts."""

    summary: ProfileSummary | None = None
    trace: Path | None = None
    trace_bytes: Bytes = 0
    notes: Annotated[list[Line], Field(max_length=8)] = []
    problem: Text | None = None
