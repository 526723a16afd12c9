"""Inputs of held-out samples, on which an exported network is compared with the trained one."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from torch import nn

from syncnorm.trainer.data.info import Data, DataInfo
from syncnorm.trainer.export import samples
from syncnorm.trainer.export.certification import HELD_OUT_SAMPLES
from syncnorm.trainer.export.forward_inputs import (
    ForwardInputs,
    Unclear,
    defines_forward,
    example_of,
    forward_inputs,
    inputs_of_batch,
)

_MOST_BATCHES = 16


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


def inputs_of_batches(module: nn.Module, batches: Iterable[Any]) -> list[ForwardInputs] | Unclear:
    """Of the first batches, as a validation step gets them; the module's example_input_array says what is wanted, and
    stands in for batches that do not have it."""
    example = example_of(module) if defines_forward(module) else None
    found, left = list[ForwardInputs](), HELD_OUT_SAMPLES
    for batch in islice(batches, _MOST_BATCHES):
        inputs = forward_inputs(module, batch) if example is None else inputs_of_batch(module, batch)
        if isinstance(inputs, Unclear):
            if example is None:
                return inputs
        elif example is None or inputs.is_like(example):
            found.append(inputs)
            left -= samples.count(inputs) or 1
        if left <= 0:
            break
    return found or ([example] if example is not None else Unclear("there is no batch to find the inputs in"))
