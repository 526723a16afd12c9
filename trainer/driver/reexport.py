"""Exports a finished job again, in other formats: `python -m syncnorm.trainer.driver.reexport FOLDER`.

FOLDER, or a URL, holds `export.json` (an ExportRequest) and gets the files and, last, `result.json`. The weights of the
first export are exported, if they have the digest that its certificate names. So there is nothing to train, and the new
certificate is about the same network.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load

from syncnorm.trainer.contract.failure import advised
from syncnorm.trainer.contract.norm_choice import chosen_norm
from syncnorm.trainer.contract.protocol import ExportRequest, Result
from syncnorm.trainer.data import build_data
from syncnorm.trainer.errors import CheckpointCorruptError
from syncnorm.trainer.export.certification import (
    CERTIFICATE_FILE,
    Place,
    TrainedModel,
    certify_and_publish,
    publish_weights,
)
from syncnorm.trainer.export.held_out import inputs_of_data
from syncnorm.trainer.export.mlflow_publisher import Publisher
from syncnorm.trainer.export.weights import DESCRIPTION_FILE, WEIGHTS_FILE
from syncnorm.trainer.failure_classifier import Failure, classify
from syncnorm.trainer.models import build_model
from syncnorm.trainer.reporting import secrets as secret_values
from syncnorm.trainer.reporting.fence_check import require_current
from syncnorm.trainer.reporting.redaction import redact, redacted_output
from syncnorm.trainer.storage.atomic_files import sha256_of, write_atomic
from syncnorm.trainer.storage.attempt_layout import AttemptFolders, opened
from syncnorm.trainer.training.conversion import convert
from syncnorm.trainer.user_code import package as user_code
from syncnorm.trainer.worker.finalize import describe_network

logger = logging.getLogger(__name__)


def main(where: str) -> int:
    """Run the export of export.json in `where`; exit code 0 unless it failed. Only result.json means success."""
    with opened(where) as folders:
        folders.mirror.fetch(folders.request)
        request = ExportRequest.model_validate_json(folders.request.read_bytes())
        result = _export(request, folders)
        write_atomic(folders.result, result.model_dump_json(indent=1).encode())
        folders.mirror.publish(folders.result)
    return 1 if result.outcome == "failed" else 0


def _export(request: ExportRequest, folders: AttemptFolders) -> Result:
    hidden: dict[str, str] = {}
    try:
        _prepare(request, folders)
        hidden = secret_values.fetch(request)
        os.environ.update(hidden)
        with redacted_output(hidden.values()):
            return reexport(request, folders)
    except Exception as error:
        redacted = redact(classify(error, rank=-1).model_dump_json(), hidden.values())
        failure = Failure.model_validate_json(redacted)
        logger.error("the export failed:\n%s", failure.traceback)
        return Result(
            fence=request.fence,
            outcome="failed",
            reason=failure.reason,
            message=advised(failure.message, failure.reason),
            outage=failure.outage,
            traceback=failure.traceback,
        )


def _prepare(request: ExportRequest, folders: AttemptFolders) -> None:
    """Prepare this process like the job's workers: uploaded code, variables, number of threads."""
    spec = request.spec
    if spec.code is not None and request.package is not None:
        user_code.unpack(request.package, spec.code.package, folders.code)
        user_code.put_on_path(folders.code)
    os.environ.update({name: value for name, value in spec.env.items() if isinstance(value, str)})
    torch.set_num_threads(spec.resources.cpus_per_worker)


def reexport(request: ExportRequest, folders: AttemptFolders) -> Result:
    """Export, certify and publish the network of an earlier export.

    Raises: CheckpointCorruptError if its weights do not have the digest that was recorded; NoExportError and
    ExportMismatchError.
    """
    source, mirror = folders.mirror.local(request.source), folders.mirror
    for name in (CERTIFICATE_FILE, DESCRIPTION_FILE, WEIGHTS_FILE):
        mirror.fetch(source / name)
    trained = _trained(request, source)
    publisher = Publisher(request.mlflow_uri, request.mlflow_run_id, partial(require_current, request))
    place = Place(folders.export, request.name, mirror)
    weights = publish_weights(trained, place, publisher)
    record = certify_and_publish(trained, request.spec.export, place, publisher, weights)
    return Result(fence=request.fence, outcome="succeeded", model=record)


def _trained(request: ExportRequest, source: Path) -> TrainedModel:
    weights, proof, digest = source / WEIGHTS_FILE, _read(source / CERTIFICATE_FILE), _digest(source)
    if sha256_of(weights) != digest:
        raise CheckpointCorruptError(f"{weights} must have the digest that its certificate names, but it has another")
    spec = request.spec
    data = build_data(spec.data, spec.seed)
    network, _ = convert(build_model(spec.model, chosen_norm(spec), data.info), spec, None)
    network.load_state_dict(load(weights.read_bytes()))
    return TrainedModel(
        job_id=request.job_id,
        network=network.eval(),
        held_out=inputs_of_data(data),
        description=describe_network(request.job_id, spec, data),
        facts={"again": {"of": digest}, "validation": proof.get("validation"), "statistics": proof.get("statistics")},
        seed=spec.seed,
    )


def _digest(source: Path) -> str | None:
    """Of the weights, from their certificate, or where the first export failed from what they belong to."""
    recorded: str | None = _read(source / CERTIFICATE_FILE).get("files", {}).get(WEIGHTS_FILE)
    return recorded or _read(source / DESCRIPTION_FILE).get("weights", {}).get("sha256")


def _read(path: Path) -> dict[str, Any]:
    """Empty for a file that does not exist: without an export there is no certificate."""
    content: dict[str, Any] = json.loads(path.read_bytes()) if path.exists() else {}
    return content


if __name__ == "__main__":
    user_code.hide_checkout()
    logging.basicConfig(level=logging.INFO)
    sys.exit(main(sys.argv[1]))
