"""Inputs of held-out samples, on which an exported network is compared with the trained one."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any, TypeAlias

import torch
from torch import nn

from syncnorm.trainer.data.info import Data, DataInfo
from syncnorm.trainer.export import samples
from syncnorm.trainer.export.certification import HELD_OUT_SAMPLES
from syncnorm.trainer.export.exported_part import entry
from syncnorm.trainer.export.forward_inputs import (
    ForwardInputs,
    Unclear,
    defines_forward,
    example_of,
    forward_inputs,
    readings_of,
    refusal,
)

_MOST_BATCHES = 16
HeldOut: TypeAlias = list[ForwardInputs] | Unclear


def example_of_data(info: DataInfo, count: int) -> ForwardInputs:
    """Zeros in the form of samples of the data; of detection a list of one image."""
    samples = torch.zeros(count, *info.shape)
    return ForwardInputs(([samples[0]],) if info.task == "detection" else (samples,))


def inputs_of_data(data: Data) -> list[ForwardInputs]:
    """Of the first samples of the validation set, in one batch; of detection one by one."""
    held_out = data.held_out or data.val
    count = min(HELD_OUT_SAMPLES, len(held_out))  # type: ignore[arg-type]
    if data.info.task == "detection":
        return [ForwardInputs(([held_out[index][0]],)) for index in range(count)]
    return [ForwardInputs((torch.stack([held_out[index][0] for index in range(count)]),))]


def inputs_of_batches(
    module: nn.Module, batches: Iterable[Any], training: Iterable[Any] = (), part: str | None = None
) -> HeldOut:
    """Of the first batches, as a validation step gets them, or else, where the network refuses those, of training:
    validation that runs windows by itself is given whole volumes, of sizes that only its windows need not have.

    The module's example_input_array says what is wanted and how large, and stands in for batches that do not have it.
    part: what is exported; where the module has no forward, they are the inputs of the part.
    Raises: NoExportError if there is no such part.
    """
    entered = entry(module, part)
    if defines_forward(entered) and (example := example_of(module)) is not None:
        return _enough(_like(entered, batch, example) for batch in islice(batches, _MOST_BATCHES)) or [example]
    found = _of_batches(entered, batches)
    if isinstance(found, Unclear) and isinstance(others := _of_batches(entered, training), list):
        return others
    return found


def _of_batches(module: nn.Module, batches: Iterable[Any]) -> HeldOut:
    found = _enough(forward_inputs(module, batch) for batch in islice(batches, _MOST_BATCHES))
    return found or Unclear("there is no batch to find the inputs in")


def _enough(each: Iterable[ForwardInputs | Unclear | None]) -> HeldOut:
    """Those that there are, until they hold enough samples, or the first that is unclear."""
    found = list[ForwardInputs]()
    for inputs in each:
        if isinstance(inputs, Unclear):
            return inputs
        if inputs is None:
            continue
        found.append(inputs)
        if sum(samples.count(one) or 1 for one in found) >= HELD_OUT_SAMPLES:
            break
    return found


def _like(module: nn.Module, batch: Any, example: ForwardInputs) -> ForwardInputs | None:
    """What of `batch` has the form of `example`, cut to its size; None where the network takes nothing of it."""
    alike = (reading for reading in readings_of(module, batch) if reading.is_like(example))
    cut = (samples.cut(reading, example) for reading in alike)
    return next((inputs for inputs in cut if inputs is not None and refusal(module, inputs) is None), None)
