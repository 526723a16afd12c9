"""The driver of one attempt: starts the workers, waits, writes result.json last.

`python -m syncnorm.trainer.driver.main FOLDER`
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import sys
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayActorError

from syncnorm.trainer.contract.failure import FailureReason, advised
from syncnorm.trainer.contract.protocol import CANNOT_BEGIN, CANNOT_BEGIN_NOW, Launch, Result
from syncnorm.trainer.contract.spec import CodeSpec
from syncnorm.trainer.debugging.request_watcher import RequestWatcher
from syncnorm.trainer.driver import single_process
from syncnorm.trainer.driver.resume_point import resume_point
from syncnorm.trainer.errors import CheckpointCorruptError, RankFailedError, StorageAwayError, StorageError
from syncnorm.trainer.failure_classifier import Failure, classify, explain_silence, first_cause, says_no_memory
from syncnorm.trainer.reporting.log_handler import ReportingHandler
from syncnorm.trainer.reporting.reporter import Reporter
from syncnorm.trainer.storage.atomic_files import write_atomic
from syncnorm.trainer.storage.attempt_layout import AttemptFolders, opened
from syncnorm.trainer.storage.sync import PATIENCE_S
from syncnorm.trainer.user_code import package as user_code
from syncnorm.trainer.user_code.requirements import RESOLVED, RequirementsError, layer_of, requirement_lines
from syncnorm.trainer.worker import worker

if TYPE_CHECKING:
    from ray.train import TrainingFailedError
    from ray.train.torch import TorchTrainer

logger = logging.getLogger(__name__)


def main(where: str) -> int:
    """Run the attempt whose launch file is in `where`, a folder or a URL; exit code 0 unless it failed.

    The exit code is for people: the service uses result.json only.
    """
    with ExitStack() as stack:
        try:
            folders = stack.enter_context(opened(where))
            folders.mirror.fetch(folders.launch)
            launch = Launch.model_validate_json(folders.launch.read_bytes())
        except OSError as error:  # only the launch file names the service; Ray keeps a driver's last lines
            begin = CANNOT_BEGIN_NOW if isinstance(error, StorageAwayError) else CANNOT_BEGIN
            print(f"{begin}{error}", file=sys.stderr, flush=True)
            return 1
        return drive(launch, folders)


def drive(launch: Launch, folders: AttemptFolders) -> int:
    """Run the attempt, store and report its result."""
    reporter = Reporter(launch, rank=-1).start()
    watcher = RequestWatcher(launch, -1, reporter).start()
    logging.basicConfig(level=logging.INFO)
    logging.getLogger().addHandler(ReportingHandler(reporter))
    try:
        result = run_attempt(launch, folders, reporter)
    except (CheckpointCorruptError, StorageError, RequirementsError) as error:
        result = _failed(launch, classify(error, rank=-1))
    except Exception as error:
        logger.exception("the driver failed with an internal error")
        result = _failed(launch, classify(error, rank=-1).model_copy(update={"reason": FailureReason.INTERNAL}))
    if not reporter.superseded:
        result = _keep(result, launch, folders)
    reporter.enter("done")
    watcher.close()
    reporter.exit(result)
    reporter.close()
    return 1 if result.outcome == "failed" else 0


def run_attempt(launch: Launch, folders: AttemptFolders, reporter: Reporter) -> Result:
    """Train on Ray; returns how it ended."""
    reporter.enter("preparing")
    if launch.spec.code is not None and launch.package is not None:
        user_code.unpack(launch.package, launch.spec.code.package, folders.code)
        _install_requirements(launch.spec.code, folders)
    ray.init(address="auto", log_to_driver=True, logging_level=logging.WARNING)
    config = {
        "folder": folders.mirror.name(folders.root),
        "resume_from": resume_point(launch, folders, reporter),
        # While one rank waits for the storage, the other ranks wait for that rank.
        "patience_s": min(PATIENCE_S, launch.spec.limits.collective_timeout_s / 2),
    }
    reporter.enter("starting_workers")
    with single_process.reserve_worker(launch.spec, launch.world_size) as is_reserved:
        if is_reserved:
            return _train_in_process(launch, config)
    return _train_on_workers(launch, folders, config)


def _install_requirements(code: CodeSpec, folders: AttemptFolders) -> None:
    """On this host, so that what can't be installed is known before workers start; the exact versions go to the run.

    Raises: RequirementsError.
    """
    if code.requirements is None:
        return
    layer = layer_of(requirement_lines(code.requirements, folders.code))
    folder = folders.artifacts / "code"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(layer / RESOLVED, folder)


def _train_in_process(launch: Launch, config: dict[str, Any]) -> Result:
    try:
        return Result.model_validate(single_process.train(config))
    except RankFailedError as error:
        return _failed(launch, Failure.model_validate_json(error.failure))


def _train_on_workers(launch: Launch, folders: AttemptFolders, config: dict[str, Any]) -> Result:
    from ray.train import TrainingFailedError

    try:
        fitted = _trainer(launch, folders, config).fit()
    except TrainingFailedError as error:
        return _failed(launch, _why(launch, folders, error))
    except RayActorError as error:
        return _failed(launch, _actor_lost(error))
    return Result.model_validate(fitted.return_value)  # type: ignore[attr-defined]  # typed as the v1 Result


def _keep(result: Result, launch: Launch, folders: AttemptFolders) -> Result:
    """Write result.json; returns the result to report, which changes if the storage accepts no more files.

    A failure is then only in the message to the service. A success that nobody can read later counts as a failure.
    """
    try:
        if not folders.root.is_dir():
            raise StorageAwayError(f"{folders.root} must exist: its storage is no longer mounted. Mount it.")
        write_atomic(folders.result, result.model_dump_json(indent=1).encode())
        folders.mirror.publish(folders.result)
    except OSError as error:
        logger.exception("could not write result.json; the result goes to the service only")
        return result if result.outcome == "failed" else _failed(launch, classify(error, rank=-1))
    return result


def _trainer(launch: Launch, folders: AttemptFolders, config: dict[str, Any]) -> TorchTrainer:
    from ray.train import ScalingConfig
    from ray.train.v2.api.config import RunConfig

    from syncnorm.trainer.driver.ray_trainer import PromptTrainer
    from syncnorm.trainer.ranks.rendezvous import Rendezvous

    res = launch.spec.resources
    return PromptTrainer(
        worker.train,  # type: ignore[arg-type]  # v2 takes a return value
        train_loop_config=config,
        # gloo beside NCCL: what the ranks agree on, such as digests and checkpoints, never lies on a GPU.
        # Until all have met; limits.collective_timeout_s holds from then on (preflight.begin).
        torch_config=Rendezvous(
            backend="cpu:gloo,cuda:nccl" if res.gpus_per_worker else "gloo",
            timeout_s=math.ceil(launch.rendezvous_timeout_s),
        ),
        scaling_config=ScalingConfig(
            num_workers=launch.world_size,
            use_gpu=res.gpus_per_worker > 0,
            resources_per_worker={"CPU": res.cpus_per_worker, "GPU": res.gpus_per_worker},
        ),
        run_config=RunConfig(  # type: ignore[arg-type]  # typed as the v1 RunConfig
            name=launch.attempt_id,
            storage_path=str(folders.ray),
            worker_runtime_env={"env_vars": _worker_environment(launch)},
        ),
    )


def _worker_environment(launch: Launch) -> dict[str, str]:
    """Settings that are needed before a worker's process group is made."""
    env = {"OMP_NUM_THREADS": str(launch.spec.resources.cpus_per_worker)}
    if len([node for node in ray.nodes() if node["Alive"]]) == 1:
        # gloo guesses an interface from the host name; with all ranks on one host loopback is always right.
        env["GLOO_SOCKET_IFNAME"] = env["NCCL_SOCKET_IFNAME"] = "lo"
    return env | {name: value for name, value in launch.spec.env.items() if isinstance(value, str)}


def _why(launch: Launch, folders: AttemptFolders, error: TrainingFailedError) -> Failure:
    """The failure in the ranks' files, or, if one could not write any more, who fell silent and Ray's message."""
    from ray.train import ControllerError

    left = _failures(folders, error)
    workers = launch.world_size
    cause = first_cause(left, workers)
    if cause is not None:
        return cause
    reason, message = explain_silence(left, workers, _hosts(folders), launch.spec.limits.collective_timeout_s)
    if isinstance(error, ControllerError):
        message = f"Ray Train could not start the workers: {str(error.controller_failure)[:500]}"
    if says_no_memory(str(error)):
        reason, message = FailureReason.OUT_OF_MEMORY, f"{message} Ray says: {str(error)[-500:]}"
    return classify(error, rank=-1).model_copy(update={"reason": reason, "message": message})


def _actor_lost(error: RayActorError) -> Failure:
    message = "A process that Ray Train needs ended without an error message (killed?)."
    return classify(error, rank=-1).model_copy(update={"reason": FailureReason.WORKER_LOST, "message": message})


def _hosts(folders: AttemptFolders) -> dict[int, str]:
    """`host, pid` by rank, as far as the preflight recorded them."""
    with suppress(StorageError):
        folders.mirror.fetch(folders.ranks)
    if not folders.ranks.exists():
        return {}
    return {fact["rank"]: f"{fact['host']}, pid {fact['pid']}" for fact in json.loads(folders.ranks.read_bytes())}


def _failures(folders: AttemptFolders, error: TrainingFailedError) -> list[Failure]:
    """The failure of each rank that could still report it: from its file, or through Ray."""
    with suppress(StorageError):
        folders.mirror.fetch_all(folders.failures)
    found = [Failure.model_validate_json(path.read_bytes()) for path in sorted(folders.failures.glob("rank-*.json"))]
    known = {failure.rank for failure in found}
    for raised in getattr(error, "worker_failures", {}).values():
        cause = getattr(raised, "_base_exc", raised)  # Ray's wrapper around what a worker raised (ray 2.60)
        if isinstance(cause, RankFailedError):
            brought = Failure.model_validate_json(cause.failure)
            found += [brought] if brought.rank not in known else []
    return found


def _failed(launch: Launch, failure: Failure) -> Result:
    message = failure.message if failure.outage else advised(failure.message, failure.reason)  # nobody's turn yet
    return Result(
        fence=launch.fence,
        outcome="failed",
        reason=failure.reason,
        message=message,
        outage=failure.outage,
        traceback=failure.traceback,
    )


if __name__ == "__main__":
    user_code.prepare_imports()
    sys.exit(main(sys.argv[1]))
