"""A training step of blocks (convolution, normalization, activation) with `norm.save_memory` and without."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from benchmarks.harness import Table, compare
from syncnorm import norm

PEER = "without save_memory"
OURS = "save_memory"
KINDS = ("sync_batch", "batch", "group", "frozen_batch")


def network(kind: str, activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """Four blocks on a picture, and a head."""
    blocks: list[nn.Module] = []
    for c_in in (3, 32, 32, 32):
        blocks += [nn.Conv2d(c_in, 32, 3, padding=1, bias=False), norm.build(kind, 32), activation()]
    return nn.Sequential(*blocks, nn.Conv2d(32, 3, 1))


def kept_bytes(model: nn.Module, x: Tensor) -> int:
    """Bytes that autograd keeps for the backward of `model` besides parameters; each piece of memory counts once."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}  # holds on to them, so that no address comes twice

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(x)
    return sum(tensor.untyped_storage().nbytes() for address, tensor in kept.items() if address not in own)


def build(kind: str) -> Mapping[str, Callable[[], object]]:
    torch.manual_seed(0)
    plain = network(kind)
    lean = copy.deepcopy(plain)
    norm.save_memory(lean)
    x = torch.randn(8, 3, 64, 64)

    def step(model: nn.Module) -> Callable[[], object]:
        return lambda: model(x).square().mean().backward()

    return {PEER: step(plain), OURS: step(lean)}


def run(rounds: int = 40) -> Table:
    settings = {kind: (kind,) for kind in KINDS}
    rows = compare(build, settings, PEER, goals={(kind, OURS): 1.1 for kind in KINDS}, rounds=rounds)
    return Table("activation_memory", PEER, rows)
