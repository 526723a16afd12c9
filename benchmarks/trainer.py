"""A training step of a user's LightningModule under our trainer, with all that it watches over, against the same module
under plain Lightning with DDP."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, Trainer
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.harness import Table, compare
from syncnorm.trainer.contract.spec import ModelSpec, NormSpec
from syncnorm.trainer.data.info import DataInfo
from syncnorm.trainer.models import build_model
from syncnorm.trainer.storage.attempt_layout import AttemptFolders
from syncnorm.trainer.training.conversion import ConvertedNorms
from syncnorm.trainer.worker.fit import fit
from tests.helpers.trainer.ranks import PlainDDP, PoolEnvironment, RecordingReporter, build, launch_of, rank_context

PEER = "plain Lightning with DDP"
OURS = "trainer"
BARE = "trainer without telemetry"
ALONE = "telemetry alone"
TELEMETRY = ("SyncShare", "StatisticsRecorder", "ProgressReporter")
"""Callbacks that only look on. Those that keep NaN out of weights and statistics are not among them."""
MODELS: Mapping[str, Mapping[str, Any]] = {"mlp": {}, "resnet": {"depth": 14}, "unet": {"width": 8}}
SETTINGS = {f"{name} {batch}x3x32x32": (name, batch) for name in MODELS for batch in (32, 8)}
GOALS = {(setting, OURS): 1.02 if batch == 32 else 1.04 for setting, (_, batch) in SETTINGS.items()}
GOALS |= {(setting, ALONE): 0.01 for setting in SETTINGS}
STEPS = 40


class Module(pl.LightningModule):
    """As people write it: a loss that is logged, SGD with momentum."""

    def __init__(self, name: str) -> None:
        super().__init__()
        info = DataInfo(_task(name), num_classes=10, shape=(3, 32, 32))
        self.network = build_model(ModelSpec(name=name, init_args=dict(MODELS[name])), NormSpec(kind="batch"), info)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.network(x)
        return out

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:  # noqa: ARG002
        x, y = batch
        loss = cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01, momentum=0.9)


class Images(pl.LightningDataModule):
    """Noise for two workers, `STEPS` batches an epoch, with a class for each image or position."""

    def __init__(self, name: str, batch_size: int) -> None:
        super().__init__()
        self.batch_size = batch_size
        images = torch.randn(2 * batch_size * STEPS, 3, 32, 32)
        shape = images[:, 0].shape if _task(name) == "segmentation" else images.shape[:1]
        self.samples = TensorDataset(images, torch.randint(10, shape))

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.samples, self.batch_size, shuffle=True)


class Gate(Callback):
    """Lets one batch through at a time, so that the steps of several loops can take turns."""

    def __init__(self) -> None:
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._error: BaseException | None = None

    def on_train_batch_start(self, *_: object) -> None:
        self._done.release()
        self._go.acquire()

    def step(self) -> None:
        """From the beginning of a batch to that of the next, its loading included."""
        self._go.release()
        self.wait()

    def wait(self) -> None:
        self._done.acquire()
        if self._error is not None:
            raise self._error

    def run(self, train: Callable[[Gate], None]) -> None:
        try:
            train(self)
        except BaseException as error:
            self._error = error
            self._done.release()


def gated(train: Callable[[Gate], None]) -> Callable[[], object]:
    """One step of `train`, which runs in a thread of its own."""
    gate = Gate()
    threading.Thread(target=gate.run, args=(train,), daemon=True).start()
    gate.wait()
    return gate.step


def _task(name: str) -> Literal["classification", "segmentation"]:
    return "segmentation" if name == "unet" else "classification"


def plainly(name: str, batch: int) -> Callable[[Gate], None]:
    def run(gate: Gate) -> None:
        rank = dist.get_rank()
        trainer = Trainer(
            accelerator="cpu",
            devices=1,
            strategy=PlainDDP(broadcast_buffers=False),
            plugins=[PoolEnvironment(rank, 2)],
            callbacks=[gate],
            max_epochs=-1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Module(name), datamodule=Images(name, batch))

    return run


class Stopwatch:
    """Adds up the time in hooks of callbacks, where they are called in a step."""

    def __init__(self) -> None:
        self._seconds = 0.0

    def watch(self, callback: Callback) -> None:
        for name in ("on_train_batch_start", "on_train_batch_end", "after_train_batch"):
            if callable(getattr(callback, name, None)):
                setattr(callback, name, self._timed(getattr(callback, name)))

    def read(self) -> float:
        """Seconds since the last reading."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def _timed(self, hook: Callable[..., None]) -> Callable[..., None]:
        def timed(*arguments: object) -> None:
            began = time.perf_counter()
            hook(*arguments)
            self._seconds += time.perf_counter() - began

        return timed


def as_a_job(name: str, batch: int, *, telemetry: Stopwatch | None) -> Callable[[Gate], None]:
    """telemetry: measures the callbacks that only look on; None: without them."""
    document = {
        "name": "steps",
        "model": {"class_path": f"{__name__}.Module", "init_args": {"name": name}},
        "data": {"class_path": f"{__name__}.Images", "init_args": {"name": name, "batch_size": batch}},
        "norm": {"kind": "batch"},
        "train": {"epochs": 10_000, "checkpoint_every": {"epochs": 10_000}},
        "resources": {"workers": 2},
    }

    def run(gate: Gate) -> None:
        def prepare(trainer: Trainer, _module: pl.LightningModule, _norms: ConvertedNorms) -> None:
            looking = [each for each in trainer.callbacks if type(each).__name__ in TELEMETRY]
            if telemetry:
                for each in looking:
                    telemetry.watch(each)
            trainer.callbacks = [gate, *(each for each in trainer.callbacks if telemetry or each not in looking)]

        rank, launch = dist.get_rank(), launch_of(document)
        folders, reporter = AttemptFolders(Path(tempfile.mkdtemp())), RecordingReporter()
        fit(build(rank, 2, launch), launch, folders, reporter, rank_context(rank, 2), prepare)  # type: ignore[arg-type]

    return run


def steps(name: str, batch: int) -> Mapping[str, Callable[[], object]]:
    telemetry = Stopwatch()
    return {
        PEER: gated(plainly(name, batch)),
        OURS: gated(as_a_job(name, batch, telemetry=telemetry)),
        BARE: gated(as_a_job(name, batch, telemetry=None)),
        ALONE: telemetry.read,
    }


def run(rounds: int = 200) -> Table:
    return Table("trainer", PEER, compare(steps, SETTINGS, PEER, goals=GOALS, rounds=rounds))
