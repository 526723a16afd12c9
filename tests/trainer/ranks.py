"""Runs the worker of an attempt on ranks of the gloo pool: everything of it but Ray's way of starting processes."""

from __future__ import annotations

from pathlib import Path

import torch
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy

from trainer.attempt import Launch, Result
from trainer.folders import AttemptFolders
from trainer.place import Place
from trainer.reporter import Reporter


class PoolEnvironment(LightningEnvironment):
    """The process group is there already; Lightning only needs to know who is who."""

    def __init__(self, rank: int, world_size: int) -> None:
        super().__init__()
        self._rank, self._size = rank, world_size

    @property
    def creates_processes_externally(self) -> bool:
        return True

    def world_size(self) -> int:
        return self._size

    def set_world_size(self, size: int) -> None:
        pass

    def global_rank(self) -> int:
        return self._rank

    def set_global_rank(self, rank: int) -> None:
        pass

    def local_rank(self) -> int:
        return self._rank

    def node_rank(self) -> int:
        return 0


class PoolStrategy(DDPStrategy):
    @property
    def root_device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def distributed_sampler_kwargs(self) -> dict[str, int]:
        return {"num_replicas": self.world_size, "rank": self.global_rank}


def place(rank: int, world_size: int) -> Place:
    return Place(rank, world_size, world_size, PoolStrategy, PoolEnvironment(rank, world_size))


def run_attempt(rank: int, world_size: int, root: str) -> Result:
    """What `trainer.worker.train` does on Ray, for the attempt whose launch file lies in `root`."""
    from trainer import worker

    folders = AttemptFolders(Path(root))
    launch = Launch.model_validate_json(folders.launch.read_bytes())
    reporter = Reporter(launch, rank).start()
    try:
        return worker.run(launch, folders, reporter, place(rank, world_size))
    finally:
        reporter.close()
