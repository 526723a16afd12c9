"""A step of training under the trainer, with all that it watches over, against a plain DDP loop of the same network."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from lightning.pytorch import Callback
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from benchmarks.harness import Table, compare
from syncnorm.trainer.storage.attempt_layout import AttemptFolders
from syncnorm.trainer.worker import fit as fitting
from tests.helpers.trainer.ranks import RecordingReporter, build, launch_of, rank_context

PEER = "plain DDP loop"
OURS = "trainer"
BARE = "trainer without telemetry"
TELEMETRY = ("SyncShare", "StatisticsShield", "StatisticsRecorder", "ProgressReporter", "NonFiniteGuard")
GOALS = {("resnet-14 32x3x32x32", OURS): 1.02}


def document(batch: int) -> dict[str, Any]:
    return {
        "name": "steps",
        "model": {"name": "resnet", "init_args": {"depth": 14}},
        "data": {"name": "synthetic", "batch_size": batch, "init_args": {"samples": 2 * batch * 40}},
        "optimizer": {"name": "sgd", "lr": 0.01, "momentum": 0.9},
        "train": {"epochs": 10_000, "checkpoint_every": {"epochs": 10_000}},
        "resources": {"workers": 2},
    }


class Gate(Callback):
    """Lets one batch through at a time, so that the steps of several loops can take turns."""

    def __init__(self) -> None:
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)

    def on_train_batch_start(self, *_: object) -> None:
        self._done.release()
        self._go.acquire()

    def step(self) -> None:
        """From the beginning of a batch to that of the next, its loading included."""
        self._go.release()
        self._done.acquire()

    def wait_for_the_first(self) -> None:
        self._done.acquire()


def trainer_step(batch: int, *, telemetry: bool) -> Callable[[], object]:
    """One step of `fit`, which runs in a thread of its own. telemetry: with the callbacks that only look on."""
    rank, gate, make = dist.get_rank(), Gate(), fitting._callbacks
    job = build(rank, 2, launch_of(document(batch)))
    folders = AttemptFolders(Path(tempfile.mkdtemp()))

    def callbacks(*args: Any) -> list[Callback]:
        return [gate, *(each for each in make(*args) if telemetry or type(each).__name__ not in TELEMETRY)]

    def run() -> None:
        fitting.fit(job.module, job.loaders, job.launch, folders, RecordingReporter(), rank_context(rank, 2), job.steps)  # type: ignore[arg-type]

    with mock.patch.object(fitting, "_callbacks", callbacks):
        threading.Thread(target=run, daemon=True).start()
        gate.wait_for_the_first()
    return gate.step


def plain_step(batch: int) -> Callable[[], object]:
    """What a script under torchrun does: the same network, the same batches, nothing else."""
    job = build(dist.get_rank(), 2, launch_of(document(batch)))
    net = DistributedDataParallel(job.module.network, broadcast_buffers=False)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)

    def endless() -> Any:
        while True:
            yield from job.loaders.train

    batches = endless()

    def run() -> None:
        x, y = next(batches).data
        optimizer.zero_grad()
        cross_entropy(net(x), y).backward()
        optimizer.step()

    return run


def steps(batch: int) -> Mapping[str, Callable[[], object]]:
    return {
        PEER: plain_step(batch),
        OURS: trainer_step(batch, telemetry=True),
        BARE: trainer_step(batch, telemetry=False),
    }


def run(rounds: int = 60) -> Table:
    settings = {"resnet-14 32x3x32x32": (32,), "resnet-14 8x3x32x32": (8,)}
    return Table("trainer", PEER, compare(steps, settings, PEER, goals=GOALS, rounds=rounds))
