"""Saves all state that a forward pass or a change of weights could alter, and restores it bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from syncnorm.trainer.random_state import random_state, restore_random_state


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A network and the random generators at one moment. Optimizer and `.grad` are not in it: no probe touches them.

    parameters, buffers: copies by name. plain: the bools and numbers that each module keeps in Python, by path.
    """

    parameters: dict[str, Tensor]
    buffers: dict[str, Tensor]
    plain: dict[str, dict[str, Any]]
    random: dict[str, Any]

    @classmethod
    def take(cls, network: nn.Module) -> Snapshot:
        return cls(
            parameters={name: tensor.detach().clone() for name, tensor in network.named_parameters()},
            buffers={name: tensor.detach().clone() for name, tensor in network.named_buffers()},
            plain={path: _plain(module) for path, module in network.named_modules()},
            random=random_state(),
        )

    def restore(self, network: nn.Module) -> None:
        """Restore in place, because DDP and the optimizer hold these very tensors."""
        copy_into(dict(network.named_parameters()), self.parameters)
        copy_into(dict(network.named_buffers()), self.buffers)
        for path, module in network.named_modules():
            vars(module).update(self.plain[path])
        restore_random_state(self.random)


@contextmanager
def undisturbed(network: nn.Module) -> Iterator[None]:
    """Within the block `network` is in eval mode; at its end all state that a Snapshot holds is as it was."""
    before = Snapshot.take(network)
    try:
        network.eval()
        yield
    finally:
        before.restore(network)


@torch.no_grad()
def copy_into(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        tensors[name].copy_(value)


def _plain(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if isinstance(value, bool | int | float)}
