"""After the last step: the statistics to export with on every rank, then weights, export and publication."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from lightning.pytorch import LightningModule

from syncnorm.norm import PopulationStatistics
from syncnorm.trainer.contract.failure import ExportReason
from syncnorm.trainer.contract.protocol import Launch, Result
from syncnorm.trainer.contract.spatial_maps import uses_windows
from syncnorm.trainer.diagnostics.window_changes import measure, record
from syncnorm.trainer.errors import CheckpointCorruptError, NoExportError
from syncnorm.trainer.export.checkpoint_choice import Which, find_checkpoint, load_weights
from syncnorm.trainer.export.forward_inputs import Unclear
from syncnorm.trainer.export.held_out import inputs_of_batches, inputs_of_data
from syncnorm.trainer.export.statistics.population import population_of_module, population_statistics
from syncnorm.trainer.export.statistics.statistics_choice import (
    StatisticsChoice,
    Used,
    choose_statistics,
    statistics_of_average,
)
from syncnorm.trainer.models.memory_format import use_contiguous
from syncnorm.trainer.random_state import seeded
from syncnorm.trainer.ranks.exchange import gather
from syncnorm.trainer.ranks.replica_check import check_agreement
from syncnorm.trainer.storage.atomic_files import write_atomic
from syncnorm.trainer.storage.attempt_layout import AttemptFolders
from syncnorm.trainer.training import checkpoints
from syncnorm.trainer.training.evaluation import evaluate
from syncnorm.trainer.training.task_module import TaskModule
from syncnorm.trainer.training.tasks.task import Task
from syncnorm.trainer.worker.fit import FitResult
from syncnorm.trainer.worker.model_description import describe_job, describe_network
from syncnorm.trainer.worker.module_and_data import TaskData
from syncnorm.trainer.worker.publication import Finished, HeldOut, is_first, publish

logger = logging.getLogger(__name__)

PICTURES = "validation"
"""Folder of the run's artifacts with pictures of validation samples."""


def finalize(
    module: TaskModule, task_data: TaskData, launch: Launch, folders: AttemptFolders, fitted: FitResult
) -> Result:
    """A task of ours: the statistics that validate better on every rank, then what `publish` does.

    Raises: NoExportError or ExportMismatchError where export.required is set; nothing is logged or registered then.
    """
    device, spec, data, loaders = _device(launch), launch.spec, task_data.data, task_data.loaders
    checkpoint = load_checkpoint(module, launch, folders, fitted)
    network = module.network.to(device)  # Lightning has put it on the CPU
    agreement = check_agreement(network)
    network.float()  # a network trained in 64-true is exported and certified in the precision of its data

    def recompute() -> PopulationStatistics | None:
        return population_statistics(network, loaders.population, spec.statistics.population, device)

    def validate() -> dict[str, float]:
        return evaluate(network, module.task, loaders.val, device)

    if checkpoint.average is not None:
        choice = statistics_of_average(recompute, validate)
    else:
        score = f"val/{module.task.score}"
        choice = choose_statistics(network, spec.export.statistics, recompute, validate, score)
    facts = {"agreement": agreement, **checkpoint.as_facts()}
    if is_first():
        if isinstance(module.task, Task) and uses_windows(spec):
            changes = measure(network.eval(), module.task, loaders.val, device)
            facts["windows"] = record(changes, folders, fitted.step)
        for name, picture in module.task.pictures(network.eval(), data):
            write_atomic(folders.artifacts / PICTURES / name, picture)
    description = describe_network(launch.job_id, spec, data)
    held_out = checkpoint.unless(lambda: inputs_of_data(data))
    finished = Finished(use_contiguous(network.cpu().eval()), held_out, description, choice)
    return publish(finished, facts, launch, folders, fitted)


def finalize_user_module(
    module: LightningModule,
    batches: Iterable[Any],
    launch: Launch,
    folders: AttemptFolders,
    fitted: FitResult,
    training: Iterable[Any] = (),
    why_running: str = "the validation of a LightningModule of yours belongs to it",
) -> Result:
    """A user's module: its running statistics, its test, then what `publish` does. Entered by every rank.

    batches: of validation, or else of training, as its steps get them; rank 0 reads a few. training: all of this rank's
    training batches, read where export.statistics is population, and a few where the network takes none of `batches`.
    why_running: why no other statistics are tried, in words that follow "because".
    Raises: as `finalize`.
    """
    checkpoint = load_checkpoint(module, launch, folders, fitted)
    agreement = check_agreement(module)
    choice, problem = _statistics_of_user(module, training, launch, why_running, checkpoint.average)
    if launch.spec.train.test:
        fitted = replace(fitted, metrics=fitted.metrics | fitted.test())
    network = use_contiguous(module.cpu().eval())
    part = launch.spec.export.module
    held_out = checkpoint.unless(lambda: problem or inputs_of_batches(network, batches, training, part))
    finished = Finished(network, held_out, describe_job(launch.job_id, launch.spec), choice)
    return publish(finished, {"agreement": agreement, **checkpoint.as_facts()}, launch, folders, fitted)


def _statistics_of_user(
    module: LightningModule,
    training: Iterable[Any],
    launch: Launch,
    why_running: str,
    average: Mapping[str, Any] | None,
) -> tuple[StatisticsChoice, Unclear | None]:
    """The choice, and why population statistics that were asked for are not there."""
    spec = launch.spec
    running = StatisticsChoice("running", f"running only, because {why_running}", None, {})
    if spec.export.statistics != "population" and average is None:
        return running, None
    with seeded(spec.seed):
        found = population_of_module(module.to(_device(launch)), training, spec.statistics.population)
    if isinstance(found, Unclear):
        return running, Unclear(f"export.statistics: {found.reason}", ExportReason.NOT_EXPORTABLE)
    if average is not None:
        return statistics_of_average(lambda: found, dict), None
    used: Used = "running" if found is None else "population"
    return StatisticsChoice(used, "export.statistics says so", found, {}), None


@dataclass(frozen=True)
class Loaded:
    """The checkpoint whose weights are published. problem: why those of the last step are, though others were asked
    for."""

    facts: Mapping[str, Any]
    problem: Unclear | None = None
    average: Mapping[str, Any] | None = None
    """What is known of the average, if the weights are averaged ones."""

    def as_facts(self) -> dict[str, Any]:
        """The facts for the certificate."""
        return {"checkpoint": self.facts} | ({"average": self.average} if self.average is not None else {})

    def unless(self, find: HeldOut) -> HeldOut:
        """`find`, unless there is a problem, which comes instead."""
        problem = self.problem
        return find if problem is None else lambda: problem


def load_checkpoint(module: LightningModule, launch: Launch, folders: AttemptFolders, fitted: FitResult) -> Loaded:
    """Put the weights that export.checkpoint names into `module`. Entered by every rank."""
    which = launch.spec.export.checkpoint
    if which == "last":
        return Loaded({"which": which}, average=fitted.average)
    step, path, problem = gather(_find(which, launch, folders) if is_first() else _NOT_ASKED)[0]
    if path is None:
        return Loaded(
            {"which": "last"}, Unclear(problem.removesuffix("."), ExportReason.NOT_EXPORTABLE), fitted.average
        )
    checkpoint = checkpoints.fetch(folders.mirror.local(path), folders.mirror)
    average = load_weights(module, checkpoint, folders.mirror, has_own_code=launch.spec.has_own_code)
    logger.info("exporting the %s checkpoint, that of step %d", which, step)
    return Loaded({"which": which, "step": step}, average=average)


_NOT_ASKED: tuple[int, str | None, str] = (0, None, "")


def _find(which: Which, launch: Launch, folders: AttemptFolders) -> tuple[int, str | None, str]:
    """(step, path on the storage, why there is none). Does not raise, because the other ranks wait for it."""
    attempts = [*folders.earlier(launch.attempt), folders]
    try:
        found = find_checkpoint(
            [each.checkpoints for each in attempts], which, folders.mirror, has_own_code=launch.spec.has_own_code
        )
    except (NoExportError, CheckpointCorruptError, OSError) as error:
        return 0, None, str(error)
    return found.step, folders.mirror.name(found.path), ""


def _device(launch: Launch) -> torch.device:
    return (
        torch.device("cuda", torch.cuda.current_device())
        if launch.spec.resources.gpus_per_worker
        else torch.device("cpu")
    )
