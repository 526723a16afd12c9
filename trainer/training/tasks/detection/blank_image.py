"""A worker without images takes part in a step of a detector: it has the same exchanges, and counts for nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from syncnorm.norm.torch_compat import BatchNormBase

SIDE = 64


def blank_image(network: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
    """A black image without objects. Detectors can't take a batch of no images."""
    like = next(network.parameters())
    target = {
        "boxes": torch.zeros(0, 4, dtype=like.dtype, device=like.device),
        "labels": torch.zeros(0, dtype=torch.int64, device=like.device),
        "masks": torch.zeros(0, SIDE, SIDE, dtype=torch.uint8, device=like.device),
    }
    return torch.zeros(3, SIDE, SIDE, dtype=like.dtype, device=like.device), target


@contextmanager
def uncounted_by_norms(network: nn.Module) -> Iterator[None]:
    """Within the block, layers that take statistics from batches are given an empty batch of their input, so that they
    exchange what the other workers wait for; the input itself passes them unchanged."""
    with ExitStack() as hooks:
        for layer in network.modules():
            if isinstance(layer, BatchNormBase) and layer.training:
                passing = list[Tensor]()
                first = layer.register_forward_pre_hook(_kept_in(passing), prepend=True)
                hooks.callback(first.remove)
                hooks.callback(layer.register_forward_hook(_released_from(passing)).remove)
        yield


@contextmanager
def accepting_no_image(network: nn.Module) -> Iterator[None]:
    """Within the block, a call of a detector with no image, `[]` or `()`, finds nothing: norms are given an empty
    batch."""
    forward = network.forward

    def call(images: Any, *rest: Any) -> Any:
        if isinstance(images, Tensor) or len(images):
            return forward(images, *rest)
        with uncounted_by_norms(network):
            return forward([blank_image(network)[0]])[:0]

    vars(network)["forward"] = call
    try:
        yield
    finally:
        del vars(network)["forward"]


def _kept_in(passing: list[Tensor]) -> Any:
    def keep(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        passing.append(args[0])
        return (args[0][:0], *args[1:])

    return keep


def _released_from(passing: list[Tensor]) -> Any:
    def release(_layer: nn.Module, _args: Any, output: Tensor) -> Tensor:
        return passing.pop() + output.sum()  # of nothing, 0; so the exchange of the backward pass takes place, too

    return release
