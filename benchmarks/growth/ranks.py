"""One to eight ranks against one device: how far their training is from it, and what a layer's call takes."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from benchmarks.growth.curves import Curve
from benchmarks.norm_resnet_step import resnet
from syncnorm.norm import SyncBatchNorm

RANKS = (1, 2, 3, 4, 6, 8)
SAMPLES = 24
"""Of a batch of all ranks: each gets the same share, however many they are."""
STEPS = 5


def measure() -> Iterator[Curve]:
    found = [_one(count) for count in RANKS]
    lines = {"parameters and running statistics": [one["difference"] for one in found]}
    yield Curve("ranks", "k ranks against one device, ResNet-20 in fp64", "ranks", "largest difference", RANKS, lines)
    lines = {"forward and backward of (2,256,14,14) a rank": [1000 * one["layer_s"] for one in found]}
    yield Curve("exchange", "A synchronized layer on two cores", "ranks", "ms, minimum", RANKS, lines)


def _one(count: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_rank, (count, folder), count)
        found: dict[str, float] = json.loads((Path(folder) / "found.json").read_text())
    return found


def _rank(rank: int, count: int, folder: str) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=count)
    found = {"difference": _difference(rank, count), "layer_s": _seconds_of_a_layer()}
    if rank == 0:
        (Path(folder) / "found.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def _difference(rank: int, count: int) -> float:
    """Largest difference of a tensor from one device's, relative to that tensor's largest value."""
    torch.manual_seed(0)
    x, target = torch.randn(SAMPLES, 3, 32, 32, dtype=torch.float64), torch.randint(10, (SAMPLES,))
    share = slice(rank * SAMPLES // count, (rank + 1) * SAMPLES // count)
    ours = _trained(DistributedDataParallel(_network(SyncBatchNorm), broadcast_buffers=False), x[share], target[share])
    expected = _trained(_network(nn.BatchNorm2d), x, target)
    pairs = zip(ours.values(), expected.values(), strict=True)
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-300)) for a, b in pairs)


def _network(norm: type[nn.Module]) -> nn.Module:
    torch.manual_seed(1)
    return resnet(norm).double()


def _trained(model: nn.Module, x: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(STEPS):
        optimizer.zero_grad()
        cross_entropy(model(x), target).backward()
        optimizer.step()
    state = getattr(model, "module", model).state_dict()
    return {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}


def _seconds_of_a_layer(rounds: int = 60) -> float:
    layer, x = SyncBatchNorm(256), torch.randn(2, 256, 14, 14, requires_grad=True)
    taken = []
    for _ in range(rounds):
        dist.barrier()
        began = time.perf_counter()
        layer(x).sum().backward()
        taken.append(time.perf_counter() - began)
    return min(taken)
