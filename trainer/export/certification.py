"""Exports a trained network, certifies the files, and publishes them to MLflow only if they pass."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from syncnorm import norm
from syncnorm.trainer.contract.protocol import ModelRecord
from syncnorm.trainer.contract.spec import ExportSpec
from syncnorm.trainer.contract.text import storable_json
from syncnorm.trainer.errors import ExportMismatchError
from syncnorm.trainer.export import certificate
from syncnorm.trainer.export import formats as export
from syncnorm.trainer.export.mlflow_publisher import Publisher
from syncnorm.trainer.export.mlflow_registry import ExportIdentity
from syncnorm.trainer.storage.atomic_files import sha256_of, write_atomic
from syncnorm.trainer.storage.sync import IN_PLACE, Mirror

logger = logging.getLogger(__name__)

HELD_OUT_SAMPLES = 64
RANDOM_SAMPLES = 64
CERTIFICATE_FILE = "certificate.json"

Array = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class TrainedModel:
    """Results of training: the network on the CPU in eval mode, held-out samples, facts for the certificate."""

    job_id: str
    network: nn.Module
    held_out: Array
    description: dict[str, Any]
    facts: dict[str, Any]
    seed: int


@dataclass(frozen=True)
class Comparison:
    """The exported files and their outputs. references: inputs with the trained network's outputs."""

    inference: nn.Module
    references: dict[str, tuple[Array, Array]]
    checks: list[certificate.Check]
    files: dict[str, str]
    folded: list[dict[str, Any]]


def export_and_compare(trained: TrainedModel, spec: ExportSpec, folder: Path) -> Comparison:
    """Writes every format of `spec` to `folder`, and compares each runtime's outputs with the trained network's."""
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
    return Comparison(inference, references, checks, files, folded)


def certify_and_publish(
    trained: TrainedModel,
    spec: ExportSpec,
    folder: Path,
    publisher: Publisher,
    name: str = "1",
    mirror: Mirror = IN_PLACE,
) -> ModelRecord:
    """Export, certify, and only then log and register the model, once for all starts of this export. Rank 0 only.

    name: of the export, `1` is the job's own; its files are in the run under `export`, those of others in
    `exports/{name}`.

    Raises: ExportMismatchError with the worst check; the certificate is in the run then, the model is not.
    SupersededError if another start has taken over before the model was registered.
    """
    comparison = export_and_compare(trained, spec, folder)
    identity = ExportIdentity(trained.job_id, name, comparison.files[export.WEIGHTS_FILE])
    checks, uri = list(comparison.checks), None
    if certificate.passed(checks):
        example = comparison.references["held_out"][0][:2]
        uri = publisher.registry.logged(identity) or publisher.log_model(comparison.inference, example, identity)
        checks += _check_logged(publisher, uri, comparison.references)
    facts = trained.facts | {"folded": comparison.folded}
    proof = certificate.document(job_id=trained.job_id, checks=checks, files=comparison.files, facts=facts)
    write_atomic(folder / CERTIFICATE_FILE, json.dumps(storable_json(proof), indent=1).encode())
    mirror.publish_all(folder, last=CERTIFICATE_FILE)
    publisher.upload(folder, "export" if name == "1" else f"exports/{name}")
    if not proof["passed"]:
        if uri is not None:
            publisher.delete_model(uri)
        raise ExportMismatchError(mismatch(checks))
    assert uri is not None
    runtimes = ", ".join(dict.fromkeys(check.runtime for check in checks))
    logger.info("certified: %s answer as the trained model does, to %.1e", runtimes, proof["max_relative_difference"])
    registered = None
    if spec.register_as:
        digest = sha256_of(folder / CERTIFICATE_FILE)
        registered, uri = publisher.registry.register(uri, spec.register_as, identity, digest)
    publisher.registry.remove_others(uri, registered, identity)
    return ModelRecord(uri=uri, registered=registered, certificate=proof)


def _inference_network(network: nn.Module, spec: ExportSpec) -> tuple[nn.Module, list[dict[str, Any]]]:
    if not spec.fold:
        return network, []
    folded, report = norm.fold(network)
    return folded, [asdict(entry) for entry in report]


def _references(trained: TrainedModel) -> dict[str, tuple[Array, Array]]:
    """Inputs with the trained network's outputs: samples from validation, and noise of the same shape and spread."""
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


def mismatch(checks: list[certificate.Check]) -> str:
    """The worst check in words."""
    worst = max(checks, key=lambda check: float("inf") if check.max_rel is None else check.max_rel)
    how = "another shape or values that are not finite" if worst.max_rel is None else f"{worst.max_rel:.2g} relative"
    return (
        f"the exported model must answer as the trained one: {worst.runtime} differs by {how} on {worst.inputs} "
        f"inputs, allowed is {certificate.MAX_RELATIVE_DIFFERENCE:g}."
    )
