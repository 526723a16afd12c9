"""An average of a network's weights, and the network with either its own weights or the average in place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn

from syncnorm import norm
from syncnorm.trainer.contract.spec import AverageSpec


class WeightAverage:
    """The average after n updates with the weights w_1, ..., w_n.

    ema: a_1 = w_1, a_n = decay * a_(n-1) + (1 - decay) * w_n. swa: a_n = (w_1 + ... + w_n) / n.
    The arithmetic is that of torch.optim.swa_utils. Its AveragedModel copies the whole module, which fails for one with
    a process group in it (torch 2.13), and keeps the running statistics of other weights. Parameters alone are averaged
    here; the running statistics are of their own, see `exchange`.
    """

    def __init__(self, spec: AverageSpec) -> None:
        self._average = get_swa_multi_avg_fn() if spec.kind == "swa" else get_ema_multi_avg_fn(spec.decay)
        self._weights: dict[str, Tensor] = {}
        self._statistics: dict[str, Tensor] = {}
        self.updates = 0

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Take in the weights as they are now. The statistics are out of date then."""
        now = {name: parameter.detach() for name, parameter in network.named_parameters()}
        self._statistics = {}
        if not self.updates:
            self._weights = {name: tensor.clone() for name, tensor in now.items()}
        for dtype in {tensor.dtype for tensor in now.values()} if self.updates else ():
            names = [name for name, tensor in now.items() if tensor.dtype == dtype]
            self._average([self._weights[name] for name in names], [now[name] for name in names], self.updates)
        self.updates += 1

    @property
    def has_statistics(self) -> bool:
        return bool(self._statistics)

    def begin_statistics(self, network: nn.Module) -> None:
        """Let `network`, with the average in place, get other running statistics; its own come back by `exchange`."""
        self._statistics = {name: tensor.clone() for name, tensor in _running_statistics(network).items()}

    @torch.no_grad()
    def exchange(self, network: nn.Module) -> None:
        """Put the average in place of the network's weights, bit for bit, or the other way round. With statistics, the
        running ones are exchanged, too."""
        _exchange(dict(network.named_parameters()), self._weights)
        _exchange(dict(network.named_buffers()), self._statistics)

    def adopt(self, network: nn.Module, *, updates: int, has_statistics: bool) -> None:
        """Go on from the average that is in place in `network`."""
        self._weights = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
        self._statistics = {}
        if has_statistics:
            self.begin_statistics(network)
        self.updates = updates


def _exchange(tensors: Mapping[str, Tensor], others: dict[str, Tensor]) -> None:
    for name, other in others.items():
        held = tensors[name].detach().clone()
        tensors[name].copy_(other)
        other.copy_(held)


def _running_statistics(network: nn.Module) -> dict[str, Tensor]:
    """Those that a pass over the training samples replaces."""
    named: dict[str, Any] = dict(network.named_buffers())
    layers = (path for path, layer in norm.snapshot(network).items() if not layer.frozen)
    names = (f"{path}.{name}" if path else name for path in layers for name in ("running_mean", "running_var"))
    return {name: named[name] for name in names}
