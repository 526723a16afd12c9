"""Exports a trained network, certifies the files, and publishes them to MLflow only if they pass."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from syncnorm.trainer.contract.failure import ExportReason
from syncnorm.trainer.contract.protocol import ModelRecord
from syncnorm.trainer.contract.spec import ExportSpec
from syncnorm.trainer.contract.text import storable_json
from syncnorm.trainer.errors import ExportMismatchError, NoExportError
from syncnorm.trainer.export import certificate, samples
from syncnorm.trainer.export import formats as export
from syncnorm.trainer.export.exported_part import Part, find_part, inference_network
from syncnorm.trainer.export.forward_inputs import ForwardInputs
from syncnorm.trainer.export.mlflow_publisher import Publisher, form_of, no_form
from syncnorm.trainer.export.mlflow_registry import ExportIdentity
from syncnorm.trainer.export.outputs import Outputs
from syncnorm.trainer.export.weights import WEIGHTS_FILE, write_weights
from syncnorm.trainer.storage.atomic_files import sha256_of, write_atomic
from syncnorm.trainer.storage.sync import IN_PLACE, Mirror

logger = logging.getLogger(__name__)

HELD_OUT_SAMPLES = 64
CERTIFICATE_FILE = "certificate.json"


@dataclass(frozen=True)
class TrainedModel:
    """Results of training: the network on the CPU in eval mode, inputs of held-out samples, facts for the
    certificate."""

    job_id: str
    network: nn.Module
    held_out: list[ForwardInputs]
    description: Mapping[str, Any]
    facts: Mapping[str, Any]
    seed: int


References = Mapping[str, Sequence[tuple[ForwardInputs, Outputs]]]
"""By name of the set: inputs with the trained network's outputs."""


@dataclass(frozen=True)
class Place:
    """Where the files of an export go. name: of the export; `1` is the job's own, whose files are in the run under
    `export`, those of others in `exports/{name}`."""

    folder: Path
    name: str = "1"
    mirror: Mirror = IN_PLACE

    @property
    def artifact_path(self) -> str:
        return "export" if self.name == "1" else f"exports/{self.name}"


def publish_weights(trained: TrainedModel, place: Place, publisher: Publisher) -> dict[str, str]:
    """Write the trained weights and what they belong to, and put them into the run; SHA-256 by file name."""
    written = write_weights(trained.network, trained.description, place.folder)
    place.mirror.publish_all(place.folder)
    for path in written:
        publisher.upload_file(path, place.artifact_path)
    return {path.name: sha256_of(path) for path in written}


@dataclass(frozen=True)
class Comparison:
    """The exported files and their outputs. references: inputs with the trained network's outputs. rounding: what it
    alone does to those, measured where a check would fail without."""

    inference: nn.Module
    exports: list[export.ExportedModel]
    references: References
    checks: list[certificate.Check]
    folded: list[dict[str, Any]]
    rounding: float | None

    @property
    def example(self) -> tuple[ForwardInputs, Outputs]:
        """Two samples, and outputs of the form that the network gives."""
        inputs, outputs = self.references["held_out"][0]
        return samples.example(inputs), outputs

    @property
    def onnx(self) -> export.ExportedModel | None:
        return next((exported for exported in self.exports if exported.names is not None), None)


def export_and_compare(trained: TrainedModel, spec: ExportSpec, folder: Path) -> Comparison:
    """Writes every format of `spec` to `folder`, and compares each runtime's outputs with the trained network's.

    Raises: NoExportError if the network can't be exported.
    """
    part = find_part(trained.network, trained.held_out, spec.module)
    inference, folded = inference_network(part.network, spec.fold)
    references = _references(part, trained.seed)
    exports = export.export(inference, samples.example(references["held_out"][0][0]), spec.formats, folder)
    runners = {"eager": export.run_eager(inference)} | {exported.runtime: exported.run for exported in exports}
    answers = {runtime: _answers(run, references) for runtime, run in runners.items()}
    checks, rounding = _checks(answers), None
    if not certificate.passed(checks):
        rounding = _rounding(part.network, references)
        checks = _checks(answers, rounding)
    return Comparison(inference, exports, references, checks, folded, rounding)


def certify_and_publish(
    trained: TrainedModel, spec: ExportSpec, place: Place, publisher: Publisher, weights: Mapping[str, str]
) -> ModelRecord:
    """Export, certify, and only then log and register the model, once for all starts of this export. Rank 0 only.

    weights: from `publish_weights`.
    Raises: NoExportError if the network can't be exported. ExportMismatchError with the worst check; the certificate
    is in the run then, the model is not. SupersededError if another start has taken over before the model was
    registered.
    """
    compared = export_and_compare(trained, spec, place.folder)
    files = {**weights, **{exported.path.name: sha256_of(exported.path) for exported in compared.exports}}
    identity, uri = ExportIdentity(trained.job_id, place.name, weights[WEIGHTS_FILE]), None
    checks, form = list(compared.checks), form_of(compared.inference, *compared.example, compared.onnx)
    if certificate.passed(checks) and form is not None:
        earlier = publisher.registry.logged(identity)
        uri = earlier or publisher.log_model(form, identity)
        with nullcontext() if earlier else _withdrawn_on_error(publisher, uri):
            answers = _answers(publisher.load_model(uri, form), compared.references)
            checks += _checks({"mlflow.pyfunc": answers}, compared.rounding)
    no_model = None if form else no_form(spec)
    facts = {**trained.facts, "folded": compared.folded, "module": spec.module, "no_model": no_model}
    proof = certificate.document(
        job_id=trained.job_id, checks=checks, files=files, facts=facts, rounding=compared.rounding
    )
    _publish_files(proof, compared.exports, place, publisher)
    if not proof["passed"]:
        if uri is not None:
            publisher.delete_model(uri)
        raise ExportMismatchError(mismatch(checks, compared.rounding))
    if uri is not None:
        publisher.finish_model(uri)
    runtimes = ", ".join(dict.fromkeys(check.runtime for check in checks))
    logger.info("certified: %s answer as the trained model does, to %.1e", runtimes, proof["max_relative_difference"])
    return _registered(uri, spec, place, publisher, identity, proof)


@contextmanager
def _withdrawn_on_error(publisher: Publisher, uri: str) -> Iterator[None]:
    """A model that can't be loaded or run must not stay in MLflow, unless an earlier start has certified it."""
    try:
        yield
    except Exception:
        with suppress(Exception):  # MLflow may be away, and the first error is the one to tell
            publisher.delete_model(uri)
        raise


def _registered(
    uri: str | None,
    spec: ExportSpec,
    place: Place,
    publisher: Publisher,
    identity: ExportIdentity,
    proof: Mapping[str, Any],
) -> ModelRecord:
    registered = None
    if spec.register_as:
        if uri is None:
            text = f"export.register_as can't be honoured: {proof['no_model']}"
            raise NoExportError(ExportReason.NOT_EXPORTABLE, text)
        digest = sha256_of(place.folder / CERTIFICATE_FILE)
        registered, uri = publisher.registry.register(uri, spec.register_as, identity, digest)
    if uri is not None:
        publisher.registry.remove_others(uri, registered, identity)
    return ModelRecord(uri=uri, registered=registered, certificate=dict(proof))


def _publish_files(
    proof: Mapping[str, Any], exports: Sequence[export.ExportedModel], place: Place, publisher: Publisher
) -> None:
    """The weights are in the run already."""
    write_atomic(place.folder / CERTIFICATE_FILE, json.dumps(storable_json(proof), indent=1).encode())
    place.mirror.publish_all(place.folder, last=CERTIFICATE_FILE)
    for path in [*(exported.path for exported in exports), place.folder / CERTIFICATE_FILE]:
        publisher.upload_file(path, place.artifact_path)


def _references(part: Part, seed: int) -> References:
    """Inputs with the trained network's outputs: samples from validation, and noise of the same shape and spread."""
    run, held_out = export.run_eager(part.network), _chosen(part.inputs)
    noise = [samples.noise_like(inputs, seed + index) for index, inputs in enumerate(held_out)]
    sets = {"held_out": held_out, "random": noise}
    return {name: [(inputs, run(inputs)) for inputs in batches] for name, batches in sets.items()}


def _chosen(batches: Sequence[ForwardInputs]) -> list[ForwardInputs]:
    """The first samples of the batches that are shaped like the first one: a file fixes all but their number."""
    found, left = list[ForwardInputs](), HELD_OUT_SAMPLES
    for inputs in batches:
        if left > 0 and samples.shapes(inputs) == samples.shapes(batches[0]):
            found.append(samples.first(inputs, left))
            left -= samples.count(inputs) or 1
    return found


def _answers(run: export.Runner, references: References) -> dict[str, certificate.Answers]:
    return {name: [(outputs, run(inputs)) for inputs, outputs in batches] for name, batches in references.items()}


def _checks(
    answers: Mapping[str, Mapping[str, certificate.Answers]], rounding: float | None = None
) -> list[certificate.Check]:
    """answers: by runtime and set of inputs."""
    most = certificate.allowed(rounding)
    return [
        certificate.compare_outputs(runtime, name, found, most)
        for runtime, sets in answers.items()
        for name, found in sets.items()
    ]


def _rounding(network: nn.Module, references: References) -> float | None:
    """What rounding alone does to the outputs of `network`: against itself in fp64. None where it can't run in that."""
    try:
        exact = export.run_eager(deepcopy(network).double())
        exactly = {name: [(inputs.double(), outputs) for inputs, outputs in sets] for name, sets in references.items()}
        return certificate.rounding([answer for found in _answers(exact, exactly).values() for answer in found])
    except Exception as error:
        logger.info("what rounding does to the outputs can't be measured: in fp64 the network raises %r", error)
        return None


def mismatch(checks: list[certificate.Check], rounding: float | None = None) -> str:
    """The worst check in words."""
    worst = max(checks, key=lambda check: float("inf") if check.max_rel is None else check.max_rel)
    how = "another shape or values that are not finite" if worst.max_rel is None else f"{worst.max_rel:.2g} relative"
    how += f" ({worst.differing} classes or other whole numbers)" if worst.differing else ""
    where = f" in output {worst.leaf}" if worst.leaf else ""
    why = f" Rounding alone moves its outputs by {rounding:.1g}, fp32 against fp64." if rounding is not None else ""
    if certificate.allowed(rounding) == certificate.MOST_ALLOWED:
        why += " Inputs with a mean near 0 and a spread near 1 make that less."
    return (
        f"the exported model must answer as the trained one: {worst.runtime} differs by {how}{where} on {worst.inputs} "
        f"inputs, allowed is {certificate.allowed(rounding):.2g}.{why}"
    )
