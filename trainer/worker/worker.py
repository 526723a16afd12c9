"""What every rank of an attempt runs: build, train, finalize."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

import lightning as L
import torch
import yaml
from lightning.pytorch import LightningModule, Trainer

from syncnorm.trainer.contract.plan import Inspection, plan
from syncnorm.trainer.contract.protocol import Launch, Result
from syncnorm.trainer.contract.spec_findings import alike
from syncnorm.trainer.contract.text import counted, name_some
from syncnorm.trainer.data.dataset_facts import dataset_inputs
from syncnorm.trainer.debugging.hang import keep_stacks
from syncnorm.trainer.debugging.profile_delivery import ProfileDelivery
from syncnorm.trainer.debugging.profiling import Profiling
from syncnorm.trainer.debugging.request_watcher import RequestWatcher
from syncnorm.trainer.errors import RankFailedError, StopRequested
from syncnorm.trainer.failure_classifier import Failure, classify
from syncnorm.trainer.ranks import preflight
from syncnorm.trainer.ranks.priority import give_way
from syncnorm.trainer.ranks.rank_context import RankContext, ray_context
from syncnorm.trainer.reporting import fence_check, metric_spool
from syncnorm.trainer.reporting import secrets as secret_values
from syncnorm.trainer.reporting.library_logging import lower_library_log_levels
from syncnorm.trainer.reporting.log_handler import ReportingHandler
from syncnorm.trainer.reporting.redaction import redact, redacted_output
from syncnorm.trainer.reporting.reporter import Reporter
from syncnorm.trainer.reporting.run_logger.assembly import journal_sender_of
from syncnorm.trainer.reporting.run_sender import RunSender, close_all
from syncnorm.trainer.reporting.stdout_capture import captured
from syncnorm.trainer.reporting.telemetry.run_facts import FactsSender, RunFacts
from syncnorm.trainer.storage.atomic_files import write_atomic
from syncnorm.trainer.storage.attempt_layout import AttemptFolders, opened
from syncnorm.trainer.training.conversion import ConvertedNorms
from syncnorm.trainer.training.task_module import TaskModule, network_of
from syncnorm.trainer.user_code import package as user_code
from syncnorm.trainer.user_code.requirements import put_requirements_on_path
from syncnorm.trainer.weights.loading import no_weights, with_weights
from syncnorm.trainer.weights.record import PLAN_FILE, resumed
from syncnorm.trainer.weights.staging import initial_weights
from syncnorm.trainer.worker.finalize import finalize, finalize_user_module
from syncnorm.trainer.worker.findings.audit_findings import require_no_error
from syncnorm.trainer.worker.fit import fit
from syncnorm.trainer.worker.model_inspection import inspection_of
from syncnorm.trainer.worker.module_and_data import assemble

logger = logging.getLogger(__name__)

MLFLOW_PATIENCE_S = 60.0
_PROFILE_PATIENCE_S = 20.0
"""How long a rank that is done waits for its last profile to be evaluated."""


def train(config: dict[str, Any]) -> dict[str, Any] | None:
    """The train loop that Ray Train runs on each worker: `train_at` with the worker's place."""
    user_code.prepare_imports()
    return train_at(ray_context(), config)


def train_at(context: RankContext, config: dict[str, Any]) -> dict[str, Any] | None:
    """Runs the worker at `place`; rank 0 returns the attempt's Result as plain values.

    A failure leaves `failures/rank-N.json` in the attempt's folder, for the driver to classify. Raises: RankFailedError
    with the same content, in case the storage accepts no more files.
    """
    with ExitStack() as stack:
        try:
            folders = stack.enter_context(opened(config["folder"], patience_s=config["patience_s"]))
            folders.mirror.fetch(folders.launch)
            launch = Launch.model_validate_json(folders.launch.read_bytes())
        except OSError as error:
            raise RankFailedError(classify(error, context.rank).model_dump_json()) from error
        return _work(launch.model_copy(update={"resume_from": config["resume_from"]}), folders, context)


def _work(launch: Launch, folders: AttemptFolders, context: RankContext) -> dict[str, Any] | None:
    reporter = Reporter(launch, context.rank).start()
    delivery = ProfileDelivery(launch, folders, reporter, context.rank)
    profiling = Profiling(delivery, is_compiled=launch.spec.train.compile)
    watcher = RequestWatcher(launch, context.rank, reporter, on_profile=profiling.request).start()
    give_way()  # once the reporter runs, which must be heard on a busy host, too
    handler = ReportingHandler(reporter)
    logging.getLogger().addHandler(handler)
    logging.getLogger().setLevel(logging.INFO)
    lower_library_log_levels()
    hidden: dict[str, str] = {}
    at_the_end = ExitStack()
    try:
        if launch.spec.code is not None and launch.package is not None and not folders.code.is_dir():
            user_code.unpack(launch.package, launch.spec.code.package, folders.code)
        user_code.put_on_path(folders.code)
        put_requirements_on_path(launch.spec.code, folders.code)
        hidden = secret_values.fetch(launch)
        os.environ.update(hidden)
        reporter.hide(hidden.values())
        with redacted_output(hidden.values()), captured(reporter):
            result = run(launch, folders, reporter, context, at_the_end, profiling)
        return result.model_dump(mode="json") if context.rank == 0 else None
    except BaseException as error:
        failure = Failure.model_validate_json(redact(classify(error, context.rank).model_dump_json(), hidden.values()))
        reporter.log("ERROR", f"rank {context.rank} failed: {failure.message}\n{failure.traceback}")
        with suppress(OSError):
            write_atomic(folders.failure(context.rank), failure.model_dump_json().encode())
            folders.mirror.publish(folders.failure(context.rank))
        keep_stacks(failure, reporter, launch.job_id)
        preflight.tell_failure(context)
        # Ray logs the cause with its text, so a cause that may hold a secret is dropped.
        raise RankFailedError(failure.model_dump_json()) from (None if hidden else error)
    finally:
        at_the_end.close()
        logging.getLogger().removeHandler(handler)
        watcher.close()
        profiling.close(_PROFILE_PATIENCE_S)
        reporter.close()


def run(
    launch: Launch,
    folders: AttemptFolders,
    reporter: Reporter,
    context: RankContext,
    at_the_end: ExitStack,
    profiling: Profiling | None = None,
) -> Result:
    """Build, train to the end or to a stop, finalize.

    at_the_end: closed once a failure is on file. Waiting for MLflow belongs there, because the other ranks don't wait
    as long.
    """
    spec = launch.spec
    torch.set_num_threads(spec.resources.cpus_per_worker)
    ranks = preflight.check(folders, context, launch.fence, launch.rendezvous_timeout_s)
    if context.rank == 0:
        reporter.placement(ranks)
    L.seed_everything(spec.seed, verbose=False)
    weights = initial_weights(launch, folders, context.rank)
    assembly = assemble(spec, context.rank, context.world_size)
    preflight.begin(context, launch.rendezvous_timeout_s)
    facts = RunFacts()

    def prepare(trainer: Trainer, module: LightningModule, norms: ConvertedNorms) -> None:
        preflight.require_disk_space(network_of(module), folders)
        if context.rank == 0:
            inspection = inspection_of(trainer, assembly, norms, spec, context.world_size)
            inspection = with_weights(inspection, weights) if weights else resumed(inspection, launch, folders)
            describe(launch, inspection, folders)
            require_no_error(inspection.findings)
            if inspection.guarantees is not None:
                reporter.guarantees(inspection.guarantees)
        timeout_s = spec.limits.collective_timeout_s
        preflight.ready(context, launch.rendezvous_timeout_s, timeout_s, [None, norms.group])
        reporter.enter("training")

    if context.rank == 0:
        # Not in `prepare`, which an attempt with nothing left to train never comes to.
        senders = list[RunSender]()
        at_the_end.callback(close_all, senders, MLFLOW_PATIENCE_S)
        senders += [_sender(launch, folders), _facts_sender(launch, facts)]
        if assembly.task_data is None:
            senders.append(journal_sender_of(launch, folders).start())
        facts.add_inputs(dataset_inputs(spec.data, spec.seed, assembly.data))
    load = weights.load if weights else no_weights
    try:
        fitted = fit(assembly, launch, folders, reporter, context, prepare, load, facts, profiling)
        reporter.enter("finalizing")
        if assembly.task_data is not None:
            assert isinstance(assembly.module, TaskModule)
            return finalize(assembly.module, assembly.task_data, launch, folders, fitted)
        return finalize_user_module(assembly.module, fitted.held_out, launch, folders, fitted, fitted.training)
    except StopRequested as stop:
        return Result(
            fence=launch.fence, outcome="stopped", message=str(stop), step=stop.step, checkpoint=stop.checkpoint
        )


def describe(launch: Launch, inspection: Inspection, folders: AttemptFolders) -> None:
    """Write spec.yaml, plan.json and norm/conversion.json for the run's artifacts, and the plan's warnings to the job's
    logs."""
    spec = launch.spec
    planned = plan(spec, None, inspection)
    layers = Counter(one["to"] for one in inspection.conversion)
    logger.info(
        "batches of %s on %s; norm %s: %s",
        counted(planned.batch.global_, "sample") if planned.batch.global_ else "samples",
        counted(launch.world_size, "worker"),
        planned.norm.kind,
        ", ".join(f"{count} {name}" for name, count in layers.items()) or "no layer exchanged",
    )
    for finding, paths in alike(planned.findings):
        if finding.severity != "info":
            where = f"{places}: " if (places := name_some(paths)) else ""
            logger.warning("plan finding: %s%s %s", where, finding.message, finding.fix)
    for name, guarantee in planned.guarantees or ():
        if guarantee.holds != "yes":
            logger.warning("guarantee %s: %s, because %s", name, guarantee.holds, guarantee.why)
    text = yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False)
    conversion = json.dumps(inspection.conversion, indent=1)
    write_atomic(folders.artifacts / "spec.yaml", text.encode())
    write_atomic(folders.artifacts / PLAN_FILE, json.dumps(planned.as_json(), indent=1).encode())
    write_atomic(folders.artifacts / "norm" / "conversion.json", conversion.encode())


def _sender(launch: Launch, folders: AttemptFolders) -> metric_spool.MetricSender:
    for earlier in folders.earlier(launch.attempt):
        folders.mirror.fetch(earlier.spool)
    client = metric_spool.rest_client(launch.mlflow_uri)
    spools, counts = folders.spools(launch.attempt), partial(fence_check.is_current, launch)
    return metric_spool.MetricSender(client, launch.mlflow_run_id, spools, counts).start()


def _facts_sender(launch: Launch, facts: RunFacts) -> FactsSender:
    client, counts = metric_spool.rest_client(launch.mlflow_uri), partial(fence_check.is_current, launch)
    return FactsSender(client, launch.mlflow_run_id, facts, counts).start()
