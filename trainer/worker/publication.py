"""Publishes what training gave: weights and artifacts first, then the export with its certificate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch.distributed as dist
from torch import nn

from syncnorm.trainer.contract.failure import FailureReason
from syncnorm.trainer.contract.protocol import ExportRecord, Launch, ModelRecord, Result
from syncnorm.trainer.errors import NoExportError
from syncnorm.trainer.export import outcome
from syncnorm.trainer.export.certification import Place, TrainedModel, certify_and_publish, publish_weights
from syncnorm.trainer.export.forward_inputs import ForwardInputs, Unclear
from syncnorm.trainer.export.mlflow_publisher import Publisher
from syncnorm.trainer.export.statistics.plots import draw_statistics
from syncnorm.trainer.export.statistics.population import keep
from syncnorm.trainer.export.statistics.statistics_choice import StatisticsChoice
from syncnorm.trainer.export.weights import DESCRIPTION_FILE
from syncnorm.trainer.reporting.fence_check import require_current
from syncnorm.trainer.storage.attempt_layout import AttemptFolders
from syncnorm.trainer.weights.record import lineage
from syncnorm.trainer.worker.fit import FitResult

MOST_LOST = 2
"""Attempts that may end without a word while they export, before the job does without one."""
HeldOut = Callable[[], list[ForwardInputs] | Unclear]


@dataclass(frozen=True)
class Finished:
    """What is published of a training that is over. network: on the CPU in eval mode. held_out: gives inputs of its
    forward, or why there are none; called on rank 0 once the weights are published."""

    network: nn.Module
    held_out: HeldOut
    description: Mapping[str, Any]
    choice: StatisticsChoice


def publish(
    finished: Finished, facts: Mapping[str, Any], launch: Launch, folders: AttemptFolders, fitted: FitResult
) -> Result:
    """On rank 0: weights, artifacts, and the export with its certificate, which states `facts`. The same result on
    every rank, but for the model and what is said of its export.

    Raises: NoExportError or ExportMismatchError where export.required is set; nothing is logged or registered then.
    """
    model, record = _export(finished, facts, launch, folders) if is_first() else (None, None)
    return Result(
        fence=launch.fence,
        outcome="succeeded",
        step=fitted.step,
        metrics={**fitted.metrics, **finished.choice.scores},
        model=model,
        export=record,
        checkpoint=fitted.checkpoint,
    )


def _export(
    finished: Finished, facts: Mapping[str, Any], launch: Launch, folders: AttemptFolders
) -> tuple[ModelRecord | None, ExportRecord | None]:
    publisher = Publisher(launch.mlflow_uri, launch.mlflow_run_id, partial(require_current, launch))
    spec, place = launch.spec.export, Place(folders.export, mirror=folders.mirror)
    facts = {**facts, **lineage(folders)}
    chosen = finished.choice.as_facts()
    trained = TrainedModel(
        job_id=launch.job_id,
        network=finished.network,
        held_out=[],
        description={**finished.description, **_of_weights(facts), "statistics": chosen["statistics"]},
        facts={**facts, **chosen},
        seed=launch.spec.seed,
    )
    weights = publish_weights(trained, place, publisher)
    publisher.tag_origin(facts.get("init_from"))
    if finished.choice.population:
        keep(finished.choice.population, folders.artifacts / "norm" / "statistics")
    draw_statistics(folders.spools(launch.attempt), folders.artifacts / "norm")
    _upload_artifacts(launch, folders, publisher)

    def export() -> ModelRecord:
        _require_no_loop(launch, folders)
        held_out = finished.held_out()
        if isinstance(held_out, Unclear):
            raise held_out.error
        return certify_and_publish(replace(trained, held_out=held_out), spec, place, publisher, weights)

    model, record = outcome.settle(export, spec)
    publisher.tag(record)
    return model, record


def _of_weights(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Which weights they are: the checkpoint, the average if they are averaged, and what training started from."""
    return {name: facts[name] for name in ("checkpoint", "average", "init_from") if name in facts}


def _require_no_loop(launch: Launch, folders: AttemptFolders) -> None:
    """Raises: NoExportError if attempts keep dying while they export, for example for want of memory: the job is
    trained, and another would die, too."""
    lost = sum(_died_while_exporting(each) for each in folders.earlier(launch.attempt))
    if lost >= MOST_LOST:
        raise NoExportError(
            FailureReason.WORKER_LOST,
            f"{lost} attempts ended while they exported (killed for want of memory?), so it is not tried again. The "
            "weights are published; try syncnorm export, with fewer formats or more memory.",
        )


def _died_while_exporting(attempt: AttemptFolders) -> bool:
    """Whether it had published the weights, and left no result."""
    has_weights = attempt.export / DESCRIPTION_FILE in attempt.mirror.children(attempt.export)
    return has_weights and attempt.result not in attempt.mirror.children(attempt.root)


def _upload_artifacts(launch: Launch, folders: AttemptFolders, publisher: Publisher) -> None:
    """Upload artifacts, those of earlier attempts first: their statistics are not recorded again by a resumed one."""
    for earlier in folders.earlier(launch.attempt):
        folders.mirror.fetch_all(earlier.artifacts)
        if earlier.artifacts.is_dir():
            publisher.upload(earlier.artifacts)
    folders.mirror.publish_all(folders.artifacts)
    publisher.upload(folders.artifacts)


def is_first() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0
