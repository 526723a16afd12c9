"""Goes up to the first step of a job, where everything that its code builds is there."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal, TypeVar

import lightning as L
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from torch import nn

from syncnorm.trainer.callbacks.before_first_step import BeforeFirstStep
from syncnorm.trainer.contract.spec import JobSpec
from syncnorm.trainer.ranks.rank_context import single_process_context, single_process_group
from syncnorm.trainer.training.conversion import ConvertedNorms
from syncnorm.trainer.worker.lightning_trainer import lightning_trainer
from syncnorm.trainer.worker.module_and_data import Assembly, assemble

T = TypeVar("T")


def at_first_step(
    spec: JobSpec,
    look: Callable[[Trainer, Assembly, ConvertedNorms], T],
    *,
    shares: int | None = None,
    precision: Literal["32-true", "64-true"] = "32-true",
    load: Callable[[nn.Module], None] = lambda _: None,
) -> T:
    """What `look` returns at the first step, with a converted module and its loaders. Nothing is trained.

    shares: workers that a user's loaders are shared out over, as in an attempt; None: resources.workers. precision: in
    place of the spec's, because this host's CPU may have no other. load: as in ConvertedNorms.
    """
    L.seed_everything(spec.seed, verbose=False)
    assembly = assemble(spec, 0, 1)
    norms, found = ConvertedNorms(spec, lambda: None, load), list[T]()

    def stop(trainer: Trainer, _module: LightningModule) -> None:
        found.append(look(trainer, assembly, norms))
        raise _ReadyError

    with single_process_group(), tempfile.TemporaryDirectory() as root:
        trainer = lightning_trainer(
            spec,
            single_process_context(),
            [BeforeFirstStep(stop, spec.seed)],
            norms,
            logger=None if assembly.task_data is not None else DummyLogger(),
            root=Path(root),
            shares=shares or spec.resources.workers,
            precision=precision,
        )
        with suppress(_ReadyError):
            trainer.fit(assembly.module, datamodule=assembly.datamodule)
    return found[0]


class _ReadyError(Exception):
    """There is no need to train."""
