"""The position of a rank among the others, and how Lightning learns it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.plugins import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from torch._C._distributed_c10d import HashStore


@dataclass(frozen=True)
class RankContext:
    """Device and environment for Lightning; the process group exists before, and they only use it."""

    rank: int
    world_size: int
    device: torch.device
    environment: ClusterEnvironment
    node_id: str | None = None
    """Ray's id of the host."""
    gpu: str | None = None
    """Model of its GPU; None: it computes on CPUs."""


def ray_context() -> RankContext:
    """This worker's place in its Ray Train worker group."""
    import ray.train.torch
    from ray.train.lightning import RayLightningEnvironment

    context: Any = ray.train.get_context()
    device = ray.train.torch.get_device()
    return RankContext(
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        device=device,
        environment=RayLightningEnvironment(),
        node_id=ray.get_runtime_context().get_node_id(),
        gpu=torch.cuda.get_device_name(device) if device.type == "cuda" else None,
    )


class _SingleProcessEnvironment(LightningEnvironment):
    """One process, started already."""

    @property
    def creates_processes_externally(self) -> bool:
        return True

    def world_size(self) -> int:
        return 1

    def teardown(self) -> None: ...


def single_process_context(node_id: str | None = None) -> RankContext:
    """The place of the only worker, on CPUs, whose process group of one exists already."""
    return RankContext(
        rank=0, world_size=1, device=torch.device("cpu"), environment=_SingleProcessEnvironment(), node_id=node_id
    )


@contextmanager
def single_process_group() -> Iterator[None]:
    """Within the block this process is a process group of its own, on CPUs."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()
