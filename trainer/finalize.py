"""After the last step: population statistics, folding, export, proof, publication."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import nn

import norm
from trainer import certificate, export
from trainer.agreement import check_agreement
from trainer.attempt import Launch, ModelRecord, Result
from trainer.classify import ExportMismatchError
from trainer.data import Data
from trainer.data.loader import Batch
from trainer.evaluate import evaluate
from trainer.files import sha256_of, write_atomic
from trainer.fit import Fitted, Loaders
from trainer.folders import AttemptFolders
from trainer.module import TrainingModule
from trainer.plan import choose_norm
from trainer.plots import draw_statistics
from trainer.publish import Publisher
from trainer.spec import ExportSpec
from trainer.tracking import Spool

HELD_OUT_SAMPLES = 64
RANDOM_SAMPLES = 64
CERTIFICATE_FILE = "certificate.json"

Array = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Trained:
    """What training left: the network on the CPU in eval mode, samples it has not learned from, facts for the proof."""

    job_id: str
    network: nn.Module
    held_out: Array
    description: dict[str, Any]
    facts: dict[str, Any]
    seed: int


def finalize(
    module: TrainingModule, data: Data, loaders: Loaders, launch: Launch, folders: AttemptFolders, fitted: Fitted
) -> Result:
    """Population statistics and scores on every rank; export, proof and publication on rank 0.

    Raises: ExportMismatchError; nothing is logged or registered then.
    """
    network, device = module.network, module.device
    agreement = check_agreement(network)
    before = evaluate(network, data.info, loaders.val, device)
    population = population_statistics(network, loaders.train, launch.spec.statistics.population, device)
    after = evaluate(network, data.info, loaders.val, device)
    model = None
    if not dist.is_initialized() or dist.get_rank() == 0:
        trained = Trained(
            job_id=launch.job_id,
            network=network.cpu().eval(),
            held_out=_held_out(data),
            description=_description(launch, data),
            facts={
                "agreement": agreement,
                "validation": {"running": before, "population": after},
                "population": population,
            },
            seed=launch.spec.seed,
        )
        publisher = Publisher(launch.mlflow_uri, launch.mlflow_run_id)
        with closing(Spool(folders.spool)) as spool:
            spool.append(
                before, fitted.step
            )  # a last epoch cut short was not validated; a known point is not sent again
        draw_statistics(folders.spools(launch.attempt), folders.artifacts / "norm")
        publisher.upload(folders.artifacts)
        model = certify_and_publish(trained, launch.spec.export, folders.export, publisher)
    return Result(
        fence=launch.fence,
        outcome="succeeded",
        step=fitted.step,
        metrics={**fitted.metrics, **after},
        model=model,
        checkpoint=fitted.checkpoint,
    )


def population_statistics(
    network: nn.Module, batches: Iterable[Batch], estimator: Literal["pooled", "paper", "none"], device: torch.device
) -> dict[str, Any] | None:
    """Put population in the place of running statistics, where there are any. Entered by every rank."""
    if estimator == "none" or not norm.snapshot(network):
        return None
    found = norm.recompute_population_statistics(
        network, (batch.x.to(device) for batch in batches), estimator=estimator
    )
    drifts = {path: layer.drift for path, layer in found.layers.items()}
    return {"estimator": estimator, "batches": found.num_batches, "samples": found.num_samples, "drift": drifts}


def _held_out(data: Data) -> Array:
    count = min(HELD_OUT_SAMPLES, len(data.val))  # type: ignore[arg-type]
    return np.stack([data.val[index][0].numpy() for index in range(count)])


def _description(launch: Launch, data: Data) -> dict[str, Any]:
    """export/model.json: all it takes to build the network that the weights belong to."""
    spec = launch.spec
    return {
        "job_id": launch.job_id,
        "model": spec.model.model_dump(mode="json"),
        "norm": spec.norm.model_dump(mode="json") | {"kind": choose_norm(spec).kind},
        "task": data.info.task,
        "num_classes": data.info.num_classes,
        "input_shape": list(data.info.shape),
    }


def certify_and_publish(trained: Trained, spec: ExportSpec, folder: Path, publisher: Publisher) -> ModelRecord:
    """Export, prove, and only then log and register the model. Rank 0 only.

    Raises: ExportMismatchError with the worst check; the certificate is in the run all the same, the model is not.
    """
    inference, folded = _inference_network(trained.network, spec)
    references = _references(trained)
    example = torch.from_numpy(references["held_out"][0][:2])
    exports = export.export(inference, example, list(spec.formats), folder)
    written = export.write_weights(trained.network, trained.description, folder)
    runners = {"eager": export.run_eager(inference)} | {exported.runtime: exported.run for exported in exports}
    checks = [
        certificate.compare(runtime, inputs, outputs, run(samples))
        for runtime, run in runners.items()
        for inputs, (samples, outputs) in references.items()
    ]
    files = {path.name: sha256_of(path) for path in [*written, *(exported.path for exported in exports)]}
    facts = trained.facts | {"folded": folded}
    uri = None
    if certificate.passed(checks):
        uri = publisher.log_model(inference, example.numpy())
        checks += _check_logged(publisher, uri, references)
    proof = certificate.document(job_id=trained.job_id, checks=checks, files=files, facts=facts)
    write_atomic(folder / CERTIFICATE_FILE, json.dumps(proof, indent=1).encode())
    publisher.upload(folder, "export")
    if not proof["passed"]:
        if uri is not None:
            publisher.delete_model(uri)
        raise ExportMismatchError(_mismatch(checks))
    assert uri is not None
    registered = publisher.register(uri, spec.register_as) if spec.register_as else None
    return ModelRecord(uri=uri, registered=registered, certificate=proof)


def _inference_network(network: nn.Module, spec: ExportSpec) -> tuple[nn.Module, list[dict[str, Any]]]:
    if not spec.fold:
        return network, []
    folded, report = norm.fold(network)
    return folded, [asdict(entry) for entry in report]


def _references(trained: Trained) -> dict[str, tuple[Array, Array]]:
    """Inputs with the trained network's answers: samples from validation, and noise of the same shape and spread."""
    run = export.run_eager(trained.network)
    held_out = trained.held_out[:HELD_OUT_SAMPLES]
    noise = np.random.default_rng(trained.seed).normal(held_out.mean(), held_out.std() + 1e-6, held_out.shape)
    noise = np.resize(noise, (RANDOM_SAMPLES, *held_out.shape[1:])).astype(held_out.dtype)
    return {"held_out": (held_out, run(held_out)), "random": (noise, run(noise))}


def _check_logged(
    publisher: Publisher, uri: str, references: dict[str, tuple[Array, Array]]
) -> list[certificate.Check]:
    predict = publisher.load_model(uri)
    return [
        certificate.compare("mlflow.pyfunc", inputs, outputs, np.asarray(predict(samples)))
        for inputs, (samples, outputs) in references.items()
    ]


def _mismatch(checks: list[certificate.Check]) -> str:
    worst = max(checks, key=lambda check: float("inf") if check.max_rel is None else check.max_rel)
    how = "another shape or values that are not finite" if worst.max_rel is None else f"{worst.max_rel:.2g} relative"
    return (
        f"the exported model must answer as the trained one: {worst.runtime} differs by {how} on {worst.inputs} "
        f"inputs, allowed is {certificate.MAX_RELATIVE_DIFFERENCE:g}."
    )
