"""Less memory for the activations of normalization layers and of what follows them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from syncnorm.norm.layers.batch_renorm import BatchRenorm
from syncnorm.norm.layers.frozen_batch_norm import FrozenBatchNorm
from syncnorm.norm.layers.instance_norm import InstanceNorm
from syncnorm.norm.layers.sync_batch_norm import SyncBatchNorm
from syncnorm.norm.memory.recorder import attach, detach
from syncnorm.norm.registry import is_normalization
from syncnorm.norm.statistics.freezing import has_frozen_statistics

_ONE_OPERATOR = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.GroupNorm,
    nn.LayerNorm,
    BatchRenorm,
    InstanceNorm,
    SyncBatchNorm,
)


@dataclass(frozen=True)
class Saved:
    """What a normalization layer and the activation behind it keep for backward from now on.

    keeps: `input`, the layer's, from which both outputs are computed again; `output`, that of the activation, for a
    layer of constants needs nothing; `all`, as without `save_memory`, and `note` says why.

    >>> norm.save_memory(nn.Sequential(nn.Conv2d(3, 8, 3), norm.FrozenBatchNorm(8), nn.ReLU()))
    [Saved(path='1', kind='FrozenBatchNorm', keeps='output', note='')]
    """

    path: str
    kind: str
    keeps: Literal["input", "output", "all"]
    note: str = ""


def save_memory(model: nn.Module) -> list[Saved]:
    """Make `model` keep one tensor for backward where a normalization and its activation keep two; in place.

    A normalization keeps its input, the activation behind it and the layer behind that keep its output. From now on
    the second is computed again from the first in backward. Outputs and gradients have the same bits as before. You
    pay with one more normalization and activation in each backward. Layers held in evaluation whose scale and shift
    need no gradient keep nothing.

    It works while `model` itself is called and gradients are on, with DistributedDataParallel around it, mixed
    precision, and activation checkpointing inside or around it, which keeps even less. Under torch.compile the compiler
    decides by itself what to compute again. What is added to the output before the activation, as at the end of a
    residual block, is kept as before.

    model: the module you call. Of a LightningModule, whose training_step is called instead, pass the networks in it.
    Returns: one entry for every normalization layer. Calling it twice is as once.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3))
    >>> [(layer.path, layer.keeps) for layer in norm.save_memory(model)]
    [('1', 'input')]
    """
    attach(model)
    return [_saved(path, layer) for path, layer in model.named_modules() if is_normalization(layer)]


def keep_all(model: nn.Module) -> None:
    """Undo `save_memory`, for example before a model is pickled."""
    detach(model)


def _saved(path: str, layer: nn.Module) -> Saved:
    kind = type(layer).__name__
    needs_nothing = isinstance(layer, FrozenBatchNorm) or (
        has_frozen_statistics(layer) and not any(parameter.requires_grad for parameter in layer.parameters())
    )
    if needs_nothing:
        return Saved(path, kind, "output")
    if isinstance(layer, _ONE_OPERATOR):
        return Saved(path, kind, "input")
    return Saved(path, kind, "all", f"{kind} computes in several steps that each keep what they need")
