"""How far the network of a task looks, measured where its windows need it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from syncnorm.norm.tiling.receptive_field import measure
from syncnorm.trainer.data.info import DataInfo, ReceptiveField
from syncnorm.trainer.training.tasks.main_output import MainOutput

LONGEST_SIDE = 1024
"""A network that looks farther counts as one that sees all of a volume."""
LARGEST_OVERLAP = 0.95
"""Of windows, as for an overlap in numbers: beyond it a volume takes thousands of windows."""


def with_field(info: DataInfo, network: nn.Module) -> DataInfo:
    """`info` with the receptive field of `network`, in eval mode, where its windows need it.

    Raises: ValueError naming the setting, where the network can't be run so.
    """
    windows = info.windows
    if windows is None or not windows.needs_field:
        return info
    setting = "windows: joint" if windows.is_joint else "overlap: auto"
    try:
        field = receptive_field(network, info.shape)
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"data.init_args.{setting} must be left out for this network: {error} Without it, volumes are run by "
            "windows that overlap by one half."
        ) from error
    if windows.overlap == "auto":
        require_room(info.shape[1:], field)
    return replace(info, windows=replace(windows, field=field))


def receptive_field(network: nn.Module, shape: Sequence[int]) -> ReceptiveField:
    """shape: of a window, (C, *). Raises: ValueError where it can't be told, or the network sees everything."""
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    dtype = next((parameter.dtype for parameter in network.parameters() if parameter.is_floating_point()), None)
    volume = torch.empty((), dtype=dtype).expand(1, shape[0], *[LONGEST_SIDE * 2] * (len(shape) - 1))
    found = measure(MainOutput(network), volume, shape[1:], device)
    return ReceptiveField(found.reach, found.strides)


def require_room(size: Sequence[int], field: ReceptiveField) -> None:
    """Raises: ValueError unless windows of this size have enough positions around which the network sees all."""
    if not has_room(size, field.reach, LARGEST_OVERLAP):
        least = [-(-int(2 * reach / LARGEST_OVERLAP + 1) // s) * s for reach, s in zip(*field, strict=True)]
        raise ValueError(
            f"data.init_args.overlap: auto needs windows of more than twice what the network looks, which is "
            f"{list(field.reach)} positions to either side, got a patch of {list(size)}. Use a patch of at least "
            f"{least}, an overlap in numbers such as 0.5, or windows: joint."
        )


def has_room(size: Sequence[int], reach: Sequence[int], overlap: float) -> bool:
    """Whether windows that overlap by twice the reach overlap by no more than this share of a side."""
    return all(2 * own <= overlap * side for side, own in zip(size, reach, strict=True))
