"""Exports a finished job once more, in other formats: `python -m trainer.again FOLDER`.

FOLDER holds `export.json` (an ExportRequest) and gets `result.json`, last, and the files. What is exported are the
weights of the first export, if they have the digest that its certificate names; so there is nothing to train, and the
new certificate speaks of the same network.
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

from trainer import secret_values, user_code
from trainer.attempt import EXPORT_FILE, RESULT_FILE, ExportRequest, Result
from trainer.certify import CERTIFICATE_FILE, Trained, certify_and_publish
from trainer.checkpoints import CheckpointCorruptError
from trainer.classify import Failure, classify
from trainer.conversion import convert
from trainer.data import build_data
from trainer.export import WEIGHTS_FILE
from trainer.failure import ADVICE
from trainer.files import sha256_of, write_atomic
from trainer.finalize import describe_network, held_out_samples
from trainer.models import build_model
from trainer.publish import Publisher
from trainer.redact import redact, redacted_output
from trainer.standing import confirm

logger = logging.getLogger(__name__)


def main(folder: Path) -> int:
    """Do what `folder`'s export.json asks for; exit code 0 unless it failed. Only result.json means success."""
    request = ExportRequest.model_validate_json((folder / EXPORT_FILE).read_bytes())
    hidden: dict[str, str] = {}
    try:
        _prepare(request, folder)
        hidden = secret_values.fetch(request)
        os.environ.update(hidden)
        with redacted_output(hidden.values()):
            result = export_again(request, folder)
    except Exception as error:
        told = redact(classify(error, rank=-1).model_dump_json(), hidden.values())
        failure = Failure.model_validate_json(told)
        logger.error("the export failed\n%s", failure.traceback)
        result = Result(
            fence=request.fence,
            outcome="failed",
            reason=failure.reason,
            message=f"{failure.message} {ADVICE[failure.reason].text}",
            traceback=failure.traceback,
        )
    write_atomic(folder / RESULT_FILE, result.model_dump_json(indent=1).encode())
    return 1 if result.outcome == "failed" else 0


def _prepare(request: ExportRequest, folder: Path) -> None:
    """What the workers of the job had: its uploaded code, its variables, its processors."""
    spec = request.spec
    if spec.code is not None and request.package is not None:
        user_code.unpack(request.package, spec.code.package, folder / "code")
        user_code.put_on_path(folder / "code")
    os.environ.update({name: value for name, value in spec.env.items() if isinstance(value, str)})
    torch.set_num_threads(spec.resources.cpus_per_worker)


def export_again(request: ExportRequest, folder: Path) -> Result:
    """Export, prove and publish the network of an earlier export.

    Raises: CheckpointCorruptError where its weights are not those of its certificate; ExportMismatchError.
    """
    proof = json.loads((Path(request.source) / CERTIFICATE_FILE).read_bytes())
    trained = _trained(request, proof)
    publisher = Publisher(request.mlflow_uri, request.mlflow_run_id, partial(confirm, request))
    record = certify_and_publish(trained, request.spec.export, folder / "export", publisher, request.name)
    return Result(fence=request.fence, outcome="succeeded", model=record)


def _trained(request: ExportRequest, proof: dict[str, Any]) -> Trained:
    weights = Path(request.source) / WEIGHTS_FILE
    if sha256_of(weights) != proof["files"][WEIGHTS_FILE]:
        raise CheckpointCorruptError(f"{weights} must have the digest that its certificate names, but it has another")
    spec = request.spec
    data = build_data(spec.data, spec.seed)
    network, _ = convert(build_model(spec.model, spec.norm, data.info), spec, None)
    network.load_state_dict(load(weights.read_bytes()))
    return Trained(
        job_id=request.job_id,
        network=network.eval(),
        held_out=held_out_samples(data),
        description=describe_network(request.job_id, spec, data),
        facts={"again": {"of": proof["files"][WEIGHTS_FILE]}, "validation": proof.get("validation")},
        seed=spec.seed,
    )


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    sys.exit(main(Path(sys.argv[1])))
