"""Training by micro-batches on several ranks, and by one batch on one device."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from syncnorm import norm
from tests.helpers.norm.models import ResNet, UNet, trained

LEARNING_RATE = 0.002
_OPTIONS = inspect.signature(DistributedDataParallel.__init__).parameters
_SENDS_BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in _OPTIONS else "broadcast_buffers"
NETWORKS = {"resnet": ResNet, "unet": UNet}
Splits = tuple[tuple[int, ...], ...]
"""The sizes of the micro-batches of each rank."""
SAMPLES = 8
ONE_BATCH: Splits = ((SAMPLES,),)
SPLITS: list[Splits] = [
    ((2, 2, 2, 2),),
    ((3, 5, 0),),
    ((2, 2), (2, 2)),
    ((3, 5), (0,)),
    ((2, 1), (3, 1), (1,)),
    ((3,), (5,), (0,)),
]


def network(name: str, kind: str, dtype: torch.dtype, **options: Any) -> nn.Module:
    torch.manual_seed(1)
    found, _ = norm.convert(NETWORKS[name](), kind, **options)
    if dtype == torch.float32:  # a ReLU that rounding switches changes the gradient by more than rounding does
        for path, module in list(found.named_modules()):
            if isinstance(module, nn.ReLU):
                found.set_submodule(path, nn.GELU())
    return trained(found).to(dtype)


def data(name: str, steps: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Inputs and targets of each step."""
    torch.manual_seed(2)
    x = torch.randn(steps, SAMPLES, 3, 12, 12).to(dtype)
    return x, torch.randint(10, (steps, SAMPLES, *((12, 12) if name == "unet" else ())))


def micro_batches(x: Tensor, target: Tensor, splits: Splits, rank: int) -> list[tuple[Tensor, Tensor]]:
    sizes = [sum(split) for split in splits]
    own = torch.split(x, sizes)[rank], torch.split(target, sizes)[rank]
    return list(zip(*(torch.split(part, splits[rank]) for part in own), strict=True))


def train(
    rank: int,
    world_size: int,
    build: tuple[Any, ...],
    x: Tensor,
    target: Tensor,
    splits: Splits,
    memory: Any = "device",
) -> dict[str, Tensor]:
    """The state after SGD by accumulated micro-batches, with the gradients of the first step. build: see `network`."""
    net = network(*build)
    model = DistributedDataParallel(net, **{_SENDS_BUFFERS: False}) if world_size > 1 else net

    def loss_of(step: int) -> Tensor:
        pairs = micro_batches(x[step], target[step], splits, rank)
        return norm.accumulated(model, cross_entropy, pairs, memory=memory)

    return _trained(net, loss_of, len(x))


def train_plainly(build: tuple[Any, ...], x: Tensor, target: Tensor) -> dict[str, Tensor]:
    """The same by one batch, without anything of ours but the layers."""
    net = network(*build)
    return _trained(net, lambda step: cross_entropy(net(x[step]), target[step]), len(x))


def _trained(net: nn.Module, loss_of: Callable[[int], Tensor], steps: int) -> dict[str, Tensor]:
    optimizer = torch.optim.SGD(net.parameters(), lr=LEARNING_RATE, momentum=0.9)
    gradients: dict[str, Tensor] = {}
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(step).backward()
        gradients = gradients or {f"grad.{name}": p.grad.clone() for name, p in net.named_parameters()}
        optimizer.step()
    return net.state_dict() | gradients
