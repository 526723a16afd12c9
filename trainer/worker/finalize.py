"""After the last step: the statistics to export with on every rank, then weights, export and publication."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule
from torch import nn

from syncnorm.trainer.contract.norm_choice import choose_norm
from syncnorm.trainer.contract.protocol import ExportRecord, Launch, ModelRecord, Result
from syncnorm.trainer.contract.spec import JobSpec
from syncnorm.trainer.data import Data
from syncnorm.trainer.export import outcome
from syncnorm.trainer.export.certification import Place, TrainedModel, certify_and_publish, publish_weights
from syncnorm.trainer.export.forward_inputs import ForwardInputs, Unclear
from syncnorm.trainer.export.held_out import inputs_of_batches, inputs_of_data
from syncnorm.trainer.export.mlflow_publisher import Publisher
from syncnorm.trainer.export.statistics.plots import draw_statistics
from syncnorm.trainer.export.statistics.population import keep, population_statistics
from syncnorm.trainer.export.statistics.statistics_choice import StatisticsChoice, choose_statistics
from syncnorm.trainer.ranks.replica_check import check_agreement
from syncnorm.trainer.reporting.fence_check import require_current
from syncnorm.trainer.storage.attempt_layout import AttemptFolders
from syncnorm.trainer.training.evaluation import evaluate
from syncnorm.trainer.training.module import TrainingModule
from syncnorm.trainer.training.tasks import score_names
from syncnorm.trainer.worker.fit import FitResult, Loaders


@dataclass(frozen=True)
class Finished:
    """What is published of a training that is over. network: on the CPU in eval mode; held_out: inputs of its forward,
    or why there are none."""

    network: nn.Module
    held_out: list[ForwardInputs] | Unclear
    description: Mapping[str, Any]
    choice: StatisticsChoice
    facts: Mapping[str, Any] = field(default_factory=dict)


def finalize(
    module: TrainingModule, data: Data, loaders: Loaders, launch: Launch, folders: AttemptFolders, fitted: FitResult
) -> Result:
    """A task of ours: the statistics that validate better on every rank, then what `publish` does.

    Raises: NoExportError or ExportMismatchError where export.required is set; nothing is logged or registered then.
    """
    device, spec = _device(launch), launch.spec
    network = module.network.to(device)  # Lightning has put it on the CPU
    agreement = check_agreement(network)
    network.float()  # a network trained in 64-true is exported and certified in the precision of its data
    choice = choose_statistics(
        network,
        spec.export.statistics,
        recompute=lambda: population_statistics(network, loaders.train, spec.statistics.population, device),
        validate=lambda: evaluate(network, data.info, loaders.val, device),
        score=f"val/{score_names(data.info)[0]}",
    )
    description, facts = describe_network(launch.job_id, spec, data), {"agreement": agreement}
    held_out = inputs_of_data(data) if _is_first() else []
    return publish(Finished(network.cpu().eval(), held_out, description, choice, facts), launch, folders, fitted)


def finalize_user_module(
    module: LightningModule,
    batches: Iterable[Any],
    launch: Launch,
    folders: AttemptFolders,
    fitted: FitResult,
    why_running: str = "the validation of a LightningModule of yours belongs to it",
) -> Result:
    """A user's module: its running statistics, then what `publish` does. Entered by every rank.

    batches: of validation, or else of training, as its steps get them; rank 0 reads a few. why_running: why no other
    statistics are tried, in words that follow "because".
    Raises: as `finalize`.
    """
    agreement = check_agreement(module)
    network = module.cpu().eval()
    held_out = inputs_of_batches(network, batches) if _is_first() else []
    choice = StatisticsChoice("running", f"running only, because {why_running}", None, {})
    description = describe_job(launch.job_id, launch.spec)
    return publish(Finished(network, held_out, description, choice, {"agreement": agreement}), launch, folders, fitted)


def publish(finished: Finished, launch: Launch, folders: AttemptFolders, fitted: FitResult) -> Result:
    """On rank 0: weights, artifacts, and the export with its certificate. The same result on every rank, but for the
    model and what is said of its export.

    Raises: NoExportError or ExportMismatchError where export.required is set; nothing is logged or registered then.
    """
    model, record = _export(finished, launch, folders) if _is_first() else (None, None)
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
    finished: Finished, launch: Launch, folders: AttemptFolders
) -> tuple[ModelRecord | None, ExportRecord | None]:
    publisher = Publisher(launch.mlflow_uri, launch.mlflow_run_id, partial(require_current, launch))
    spec, place = launch.spec.export, Place(folders.export, mirror=folders.mirror)
    held_out = finished.held_out
    trained = TrainedModel(
        job_id=launch.job_id,
        network=finished.network,
        held_out=[] if isinstance(held_out, Unclear) else held_out,
        description=finished.description,
        facts={**finished.facts, **finished.choice.as_facts()},
        seed=launch.spec.seed,
    )
    if finished.choice.population:
        keep(finished.choice.population, folders.artifacts / "norm" / "statistics")
    draw_statistics(folders.spools(launch.attempt), folders.artifacts / "norm")
    _upload_artifacts(launch, folders, publisher)
    weights = publish_weights(trained, place, publisher)

    def export() -> ModelRecord:
        if isinstance(held_out, Unclear):
            raise held_out.error
        return certify_and_publish(trained, spec, place, publisher, weights)

    return outcome.settle(export, spec)


def _upload_artifacts(launch: Launch, folders: AttemptFolders, publisher: Publisher) -> None:
    """Upload artifacts, those of earlier attempts first: their statistics are not recorded again by a resumed one."""
    for earlier in folders.earlier(launch.attempt):
        folders.mirror.fetch_all(earlier.artifacts)
        if earlier.artifacts.is_dir():
            publisher.upload(earlier.artifacts)
    publisher.upload(folders.artifacts)


def _is_first() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def _device(launch: Launch) -> torch.device:
    return (
        torch.device("cuda", torch.cuda.current_device())
        if launch.spec.resources.gpus_per_worker
        else torch.device("cpu")
    )


def describe_network(job_id: str, spec: JobSpec, data: Data) -> dict[str, Any]:
    """export/model.json: everything needed to build the network that the weights belong to."""
    return describe_job(job_id, spec) | {
        "task": data.info.task,
        "num_classes": data.info.num_classes,
        "input_shape": list(data.info.shape),
    }


def describe_job(job_id: str, spec: JobSpec) -> dict[str, Any]:
    """The same as far as the spec says it."""
    return {
        "job_id": job_id,
        "model": spec.model.model_dump(mode="json"),
        "norm": spec.norm.model_dump(mode="json") | {"kind": choose_norm(spec).kind},
    }
