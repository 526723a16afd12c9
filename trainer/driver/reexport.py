"""Exports a finished job again, in other formats: `python -m syncnorm.trainer.driver.reexport FOLDER`.

FOLDER, or a URL, holds `export.json` (an ExportRequest) and gets the files and, last, `result.json`. The weights of the
first export are exported, if they have the digest that its certificate names, or those of a checkpoint of the job. So
there is nothing to train, and the new certificate is about the same network.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Trainer

from syncnorm.trainer.contract.failure import advised
from syncnorm.trainer.contract.protocol import ExportRequest, Result
from syncnorm.trainer.driver.published_weights import Published, load_weights
from syncnorm.trainer.export.certification import Place, TrainedModel, certify_and_publish, publish_weights
from syncnorm.trainer.export.forward_inputs import ForwardInputs, Unclear
from syncnorm.trainer.export.held_out import inputs_of_batches, inputs_of_data
from syncnorm.trainer.export.mlflow_publisher import Publisher
from syncnorm.trainer.failure_classifier import Failure, classify
from syncnorm.trainer.models.memory_format import use_contiguous
from syncnorm.trainer.reporting import secrets as secret_values
from syncnorm.trainer.reporting.fence_check import require_current
from syncnorm.trainer.reporting.redaction import redact, redacted_output
from syncnorm.trainer.storage.atomic_files import write_atomic
from syncnorm.trainer.storage.attempt_layout import AttemptFolders, opened
from syncnorm.trainer.storage.sync import Mirror
from syncnorm.trainer.training.conversion import ConvertedNorms
from syncnorm.trainer.training.task_module import network_of
from syncnorm.trainer.user_code import package as user_code
from syncnorm.trainer.user_code.requirements import put_requirements_on_path
from syncnorm.trainer.worker.first_step import at_first_step
from syncnorm.trainer.worker.fit import batches_of
from syncnorm.trainer.worker.model_description import describe_job, describe_network
from syncnorm.trainer.worker.module_and_data import Assembly

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
        put_requirements_on_path(spec.code, folders.code)
    os.environ.update({name: value for name, value in spec.env.items() if isinstance(value, str)})
    torch.set_num_threads(spec.resources.cpus_per_worker)


def reexport(request: ExportRequest, folders: AttemptFolders) -> Result:
    """Export, certify and publish the network of a finished job.

    Raises: CheckpointCorruptError, NoExportError, ExportMismatchError.
    """
    mirror = folders.mirror
    trained = _trained(request, Published.read(mirror.local(request.source), mirror), mirror)
    publisher = Publisher(request.mlflow_uri, request.mlflow_run_id, partial(require_current, request))
    place = Place(folders.export, request.name, mirror)
    weights = publish_weights(trained, place, publisher)
    record = certify_and_publish(trained, request.spec.export, place, publisher, weights)
    return Result(fence=request.fence, outcome="succeeded", model=record)


def _trained(request: ExportRequest, published: Published, mirror: Mirror) -> TrainedModel:
    """Built as an attempt builds it, up to its first step, because a module may build its network in hooks."""
    spec = request.spec

    def with_weights(trainer: Trainer, assembly: Assembly, _norms: ConvertedNorms) -> TrainedModel:
        held_out, training = batches_of(trainer)
        facts = load_weights(assembly, training, spec, published, mirror)
        about = {name: facts[name] for name in ("checkpoint", "average", "statistics", "init_from") if name in facts}
        return TrainedModel(
            job_id=request.job_id,
            network=use_contiguous(network_of(assembly.module).eval()),
            held_out=_inputs(assembly, held_out, training, spec.export.module),
            description=_description(assembly, request) | about,
            facts=facts,
            seed=spec.seed,
        )

    # Statistics of the training set need all of it; the inputs are else those that rank 0 had.
    needs_all = spec.export.statistics == "population" or spec.train.average is not None
    shares = 1 if needs_all else None
    is_double = spec.train.precision == "64-true"
    trained = at_first_step(spec, with_weights, shares=shares, precision="64-true" if is_double else "32-true")
    trained.network.cpu()
    return trained


def _inputs(
    assembly: Assembly, batches: Iterable[Any], training: Iterable[Any], part: str | None
) -> list[ForwardInputs]:
    """Raises: NoExportError if it is not clear what forward takes of a batch."""
    if assembly.task_data is not None:
        assembly.module.float()  # it is certified in the precision of its data
        return inputs_of_data(assembly.task_data.data)
    found = inputs_of_batches(assembly.module, batches, training, part)
    if isinstance(found, Unclear):
        raise found.error
    return found


def _description(assembly: Assembly, request: ExportRequest) -> dict[str, Any]:
    if assembly.task_data is None:
        return describe_job(request.job_id, request.spec)
    return describe_network(request.job_id, request.spec, assembly.task_data.data)


if __name__ == "__main__":
    user_code.prepare_imports()
    logging.basicConfig(level=logging.INFO)
    sys.exit(main(sys.argv[1]))
