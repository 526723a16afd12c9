"""Trains on ranks of the gloo pool: all that a worker does but Ray's way of starting processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from unittest import mock

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from syncnorm.trainer.contract.protocol import Launch, StopRequest
from syncnorm.trainer.contract.spec_reader import read_spec
from syncnorm.trainer.data import Data
from syncnorm.trainer.errors import NonFiniteError, StopRequested
from syncnorm.trainer.ranks import stop_agreement
from syncnorm.trainer.ranks.rank_context import RankContext
from syncnorm.trainer.storage.attempt_layout import opened
from syncnorm.trainer.training.task_module import network_of
from syncnorm.trainer.weights.loading import no_weights
from syncnorm.trainer.weights.staging import initial_weights
from syncnorm.trainer.worker.fit import Prepare, fit
from syncnorm.trainer.worker.module_and_data import Assembly, assemble, assemble_task


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


def rank_context(rank: int, world_size: int) -> RankContext:
    return RankContext(rank, world_size, torch.device("cpu"), PoolEnvironment(rank, world_size))


class PlainDDP(DDPStrategy):
    """Lightning's own replication; the process group of the test is there already."""

    @property
    def root_device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def distributed_sampler_kwargs(self) -> dict[str, int]:
        return {"num_replicas": self.world_size, "rank": self.global_rank}


class RecordingReporter:
    """Stands in for the reporter of a rank: asks for a stop once `stop_at` steps are done."""

    superseded = False

    def __init__(self, *, stop_at: int | None = None) -> None:
        self._stop_at = stop_at
        self.stop_request: StopRequest | None = None
        self.events: list[tuple[str, str, dict[str, Any]]] = []
        self.checkpoints: list[dict[str, Any]] = []
        self.metrics: dict[str, float] = {}
        """As reported last."""

    def progress(self, *, step: int, metrics: dict[str, float], **_: object) -> None:
        self.metrics = metrics
        if self._stop_at is not None and step >= self._stop_at:
            self.stop_request = "pause"

    def enter(self, *_: object) -> None: ...

    def log(self, *_: object) -> None: ...

    def is_sending(self) -> bool:
        return False

    def event(self, kind: str, message: str, **data: Any) -> None:
        self.events.append((kind, message, data))

    def checkpoint(self, **fact: Any) -> None:
        self.checkpoints.append(fact)

    def checkpoints_to_spare(self) -> set[int]:
        return set()

    def silent_s(self) -> float:
        return 0.0


@dataclass
class TrainedModel:
    """What one rank is left with: the network's tensors, and where it stopped (None: at the end)."""

    state: dict[str, Tensor]
    metrics: dict[str, float]
    stopped_at: int | None


def launch_of(document: dict[str, Any], resume_from: str | None = None) -> Launch:
    """What the driver of the job of `document` would be given, without a service and MLflow."""
    return Launch(
        job_id="j",
        attempt=1,
        fence="f",
        spec=read_spec(document),
        service_url=None,
        token=None,
        mlflow_uri="",
        mlflow_run_id="",
        resume_from=resume_from,
    )


def build(rank: int, world_size: int, launch: Launch, data: Data | None = None) -> Assembly:
    """As a worker does. data: in place of that of the job."""
    if dist.is_initialized():
        dist.barrier()  # a rank that refuses the job at once must not leave while the other still connects
    L.seed_everything(launch.spec.seed, verbose=False)
    if data is None:
        return assemble(launch.spec, rank, world_size)
    return assemble_task(launch.spec, data, rank, world_size)


def train(
    rank: int,
    world_size: int,
    root: str,
    document: dict[str, Any],
    resume_from: str | None = None,
    told: RecordingReporter | None = None,
    data: Data | None = None,
    where: RankContext | None = None,
    prepare: Prepare | None = None,
) -> TrainedModel:
    """Train the job of `document` as a worker does, without finalizing. root: a folder, or a URL.

    told: what rank 0 hears meanwhile, on which ranks agree one batch later, however fast batches are; data: in place of
    that of the document; where: if not on the CPU; prepare: before the first step.
    """
    assembly = build(rank, world_size, launch := launch_of(document, resume_from), data)
    reporter: Any = told if told is not None and rank == 0 else RecordingReporter()
    stopped_at, metrics = None, dict[str, float]()
    try:
        with opened(root) as folders, mock.patch.object(stop_agreement, "EVERY_S", 0.0):
            weights = initial_weights(launch, folders, rank)
            metrics = fit(
                assembly,
                launch,
                folders,
                reporter,
                where or rank_context(rank, world_size),
                prepare or (lambda *_: None),
                weights.load if weights else no_weights,
            ).metrics
    except StopRequested as stop:
        stopped_at = stop.step
    network = network_of(assembly.module)
    return TrainedModel({name: tensor.clone() for name, tensor in network.state_dict().items()}, metrics, stopped_at)


def train_many(
    rank: int, world_size: int, roots: list[str], documents: list[dict[str, Any]]
) -> list[dict[str, float] | None]:
    """Train one job after the other; the metrics of each, None for one whose training diverged."""
    found: list[dict[str, float] | None] = []
    for root, document in zip(roots, documents, strict=True):
        try:
            trained = train(rank, world_size, root, document)
        except NonFiniteError:
            found.append(None)
            continue
        found.append({name: value for name, value in trained.metrics.items() if name.startswith("val/")})
    return found
