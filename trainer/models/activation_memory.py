"""train.activation_memory: lean. Networks keep less for backward while they are trained."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator

from lightning.pytorch import LightningModule
from torch import nn

from syncnorm import norm
from syncnorm.norm.memory_savings import keep_all

logger = logging.getLogger(__name__)

_CALLED_BY_PARTS = (nn.ModuleList, nn.ModuleDict)


def save_memory(network: nn.Module) -> None:
    """Let `network` keep one tensor where normalization and activation keep two; a LightningModule, all in it."""
    counts = Counter(layer.keeps for part in called_parts(network) for layer in norm.save_memory(part))
    logger.info(
        "activation memory is lean: of %d normalization layers, %d keep their input, %d no more than the layer behind, "
        "%d all as before",
        counts.total(), counts["input"], counts["output"], counts["all"],
    )  # fmt: skip


def keep_memory(network: nn.Module) -> None:
    """Undo `save_memory`: export needs the network as it is written."""
    for part in called_parts(network):
        keep_all(part)


def called_parts(network: nn.Module) -> Iterator[nn.Module]:
    """What is called as a module: of a LightningModule the networks in it, for its training_step is called instead."""
    yield from _parts(network) if isinstance(network, LightningModule) else [network]


def _parts(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, _CALLED_BY_PARTS):
            yield from _parts(child)
        else:
            yield child
