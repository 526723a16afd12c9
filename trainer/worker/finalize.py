"""After the last step: population statistics and scores on every rank, then export, certificate and publication."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from syncnorm.trainer.contract.norm_choice import choose_norm
from syncnorm.trainer.contract.protocol import Launch, Result
from syncnorm.trainer.contract.spec import JobSpec
from syncnorm.trainer.data import Data
from syncnorm.trainer.export.certification import HELD_OUT_SAMPLES, Array, TrainedModel, certify_and_publish
from syncnorm.trainer.export.mlflow_publisher import Publisher
from syncnorm.trainer.export.plots import draw_statistics
from syncnorm.trainer.export.population import as_facts, keep, population_statistics
from syncnorm.trainer.ranks.replica_check import check_agreement
from syncnorm.trainer.reporting.fence_check import require_current
from syncnorm.trainer.storage.attempt_layout import AttemptFolders
from syncnorm.trainer.training.evaluation import evaluate
from syncnorm.trainer.training.module import TrainingModule
from syncnorm.trainer.worker.fit import FitResult, Loaders


def finalize(
    module: TrainingModule, data: Data, loaders: Loaders, launch: Launch, folders: AttemptFolders, fitted: FitResult
) -> Result:
    """Population statistics and scores on every rank; export, certificate and publication on rank 0.

    Raises: ExportMismatchError; nothing is logged or registered then.
    """
    device = _device(launch)
    network = module.network.to(device)  # Lightning has put it on the CPU
    agreement = check_agreement(network)
    network.float()  # a network trained in 64-true is exported and certified in the precision of its data
    before = evaluate(network, data.info, loaders.val, device)
    population = population_statistics(network, loaders.train, launch.spec.statistics.population, device)
    after = evaluate(network, data.info, loaders.val, device)
    model = None
    if _is_first():
        trained = TrainedModel(
            job_id=launch.job_id,
            network=network.cpu().eval(),
            held_out=held_out_samples(data),
            description=describe_network(launch.job_id, launch.spec, data),
            facts={
                "agreement": agreement,
                "validation": {"running": before, "population": after},
                "population": as_facts(population) if population else None,
            },
            seed=launch.spec.seed,
        )
        publisher = Publisher(launch.mlflow_uri, launch.mlflow_run_id, partial(require_current, launch))
        if population:
            keep(population, folders.artifacts / "norm" / "statistics")
        draw_statistics(folders.spools(launch.attempt), folders.artifacts / "norm")
        _upload_artifacts(launch, folders, publisher)
        model = certify_and_publish(trained, launch.spec.export, folders.export, publisher, mirror=folders.mirror)
    return Result(
        fence=launch.fence,
        outcome="succeeded",
        step=fitted.step,
        metrics={**fitted.metrics, **after},
        model=model,
        checkpoint=fitted.checkpoint,
    )


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


def held_out_samples(data: Data) -> Array:
    """Samples of the validation set, for the comparison of the exported network with the trained one."""
    count = min(HELD_OUT_SAMPLES, len(data.val))  # type: ignore[arg-type]
    return np.stack([data.val[index][0].numpy() for index in range(count)])


def describe_network(job_id: str, spec: JobSpec, data: Data) -> dict[str, Any]:
    """export/model.json: everything needed to build the network that the weights belong to."""
    return {
        "job_id": job_id,
        "model": spec.model.model_dump(mode="json"),
        "norm": spec.norm.model_dump(mode="json") | {"kind": choose_norm(spec).kind},
        "task": data.info.task,
        "num_classes": data.info.num_classes,
        "input_shape": list(data.info.shape),
    }
