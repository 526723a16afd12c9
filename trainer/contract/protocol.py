"""The contract between the service and one attempt: a folder, a launch file in, a result file out, messages between.

The service writes `launch.json` before it starts the driver `python -m syncnorm.trainer.driver.main FOLDER`; the driver
writes `result.json` last, and only that file means success. Everything an attempt writes lies under its folder, so
an attempt that was given up can't harm its successor.
Messages go to `{service_url}/internal/v1/attempts/{attempt_id}/…` with the
attempt's token; a 409 answer means that another attempt has taken over.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from syncnorm.trainer.contract.bounds import (
    MOST_WORKERS,
    Bytes,
    Digest,
    Epoch,
    Fence,
    Instant,
    Line,
    Metrics,
    Path,
    Pid,
    Rank,
    Sequence,
    ShortName,
    Speaker,
    Stack,
    Step,
    Traceback,
    Word,
    fitting,
)
from syncnorm.trainer.contract.bounds import Message as Text
from syncnorm.trainer.contract.failure import FailureReason
from syncnorm.trainer.contract.initial_weights import WeightAccess
from syncnorm.trainer.contract.plan import Guarantees
from syncnorm.trainer.contract.profile import ProfileAnswer, ProfileRequest
from syncnorm.trainer.contract.spec import JobSpec

LAUNCH_FILE = "launch.json"
RESULT_FILE = "result.json"
EXPORT_FILE = "export.json"
METRICS_FILE = "metrics.jsonl"
"""Every metric of an attempt, a JSON line each: key, value, step, timestamp."""

CANNOT_BEGIN = "syncnorm can't read its launch file: "
"""Prefix of the last line that a driver prints if it can't use the storage; the reason follows."""
CANNOT_BEGIN_NOW = "syncnorm can't read its launch file now: "
"""The same if the storage did not answer."""

StopRequest = Literal["cancel", "pause", "preempt", "deadline", "resize"]
Outcome = Literal["succeeded", "failed", "stopped"]
Phase = Literal["preparing", "starting_workers", "training", "finalizing", "done"]


MOST_LINES = 1000
"""Log lines in one message."""
MOST_THREADS = 32
"""Threads in one message of stacks, the one that trains first. With at most 16 KiB each, a process takes 512 KiB."""
LONGEST_WAIT_S = 20.0
"""How long the service keeps a process waiting that asks what is asked of it."""
WORKER_EVENTS = frozenset(
    {
        "phase",
        "non_finite",
        "graph_captured",
        "graph_refused",
        "statistics_alert",
        "statistics_recovered",
        "checkpoint_fallback",
        "reporter_failed",
        "events_left_out",
    }
)
"""Kinds of events that workers may send under their own names. Any other becomes `user.NAME`, so that nothing a job
sends can be mistaken for an event of the service."""


class Message(BaseModel):
    """A message. Bounds correct, cut or refuse an odd value where it arrives; see bounds.py."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Launch(Message):
    """Everything that the driver of one attempt needs."""

    job_id: str
    attempt: int
    fence: str
    """Random, 128 bit, hex. The service rejects messages of an attempt whose fence is not the current one."""
    spec: JobSpec
    workers: int | None = None
    """Workers of this attempt, if an elastic job runs on fewer; None: resources.workers."""
    service_url: str | None
    """None: no service to report to (a job run by hand)."""
    token: str | None
    mlflow_uri: str
    mlflow_run_id: str
    resume_from: str | None
    """Folder of the checkpoint to resume from, chosen once by the service; None: from the start."""
    weights: WeightAccess = WeightAccess()
    """What model.init_from may read."""
    package: str | None = None
    """Where the uploaded archive of code.package lies."""
    startup_timeout_s: float = 600.0
    """The service ends an attempt that does not train after this time."""

    @property
    def rendezvous_timeout_s(self) -> float:
        """How long ranks wait for each other before training, with time left to report who did not come."""
        return self.startup_timeout_s / 2

    @property
    def world_size(self) -> int:
        return self.workers or self.spec.resources.workers

    @property
    def attempt_id(self) -> str:
        return attempt_id(self.job_id, self.attempt)

    @property
    def secrets_path(self) -> str:
        return f"/internal/v1/attempts/{self.attempt_id}/secrets"

    @property
    def heartbeat_path(self) -> str:
        return f"/internal/v1/attempts/{self.attempt_id}/heartbeat"


class ExportRequest(Message):
    """`export.json` in the folder of one start of a later export; see `export_folder` and driver/reexport.py."""

    name: str
    """Name of the export; its files are in the run under `exports/{name}`."""
    job_id: str
    fence: str
    spec: JobSpec
    """The job's spec, with the requested `export` section."""
    source: str
    """The export folder of the attempt that succeeded."""
    mlflow_uri: str
    mlflow_run_id: str
    package: str | None = None
    """Where the uploaded archive of code.package lies."""
    service_url: str | None = None
    token: str | None = None

    @property
    def secrets_path(self) -> str:
        return f"/internal/v1/exports/{self.job_id}/{self.name}/secrets"

    @property
    def heartbeat_path(self) -> str:
        return f"/internal/v1/exports/{self.job_id}/{self.name}/heartbeat"


ExportState = Literal["running", "certified", "failed", "skipped"]


class ExportRecord(Message):
    """How the export of a job that is trained ended; `running` is said by the service alone."""

    state: ExportState
    reason: Word | None = None
    """Why there is no certified model: an ExportReason, or a FailureReason where something else went wrong."""
    message: Text = ""


class ModelRecord(Message):
    """The exported model. certificate: the content of export/certificate.json.

    uri: None where MLflow has no form for a model with such inputs and outputs.
    """

    uri: Path | None
    registered: ShortName | None
    certificate: Annotated[dict[str, Any], fitting(4 * 2**20, depth=32)]


class Result(Message):
    """How an attempt ended. reason is set unless it succeeded. stopped: on request, with a checkpoint to resume
    from."""

    fence: Fence
    outcome: Outcome
    reason: FailureReason | None = None
    message: Text = ""
    outage: bool = False
    """For the reason storage: nothing was refused; the storage did not answer, and may on a retry."""
    traceback: Traceback | None = None
    step: Step = 0
    metrics: Metrics = {}
    model: ModelRecord | None = None
    export: ExportRecord | None = None
    """Of an attempt that succeeded; None in results of versions that failed a job with its export."""
    checkpoint: Path | None = None


class Heartbeat(Message):
    """`source` is `driver`, `rank-N`, or `asking` for one that only asks whether it is still current."""

    fence: Fence
    source: Word
    phase: Phase
    step: Step | None = None


class Progress(Message):
    """Training progress: finished epochs and steps."""

    fence: Fence
    epoch: Epoch
    epochs: Epoch | None
    step: Step
    steps: Step | None
    metrics: Metrics


class LogLine(Message):
    """seq counts up from 1 for each rank of an attempt; rank -1 is the driver. at: RFC 3339, UTC."""

    rank: Speaker
    seq: Sequence
    at: Instant
    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"]
    text: Line


class LogLines(Message):
    fence: Fence
    lines: Annotated[list[LogLine], Field(max_length=MOST_LINES)]


class RankPlacement(Message):
    """Where a rank runs."""

    rank: Rank
    """The rank."""
    host: ShortName
    """Name of the host."""
    pid: Pid
    """Process id on the host."""
    node_id: ShortName | None = None
    """The host as Ray and /v1/cluster name it; null if Ray does not say."""
    gpu: ShortName | None = None
    """Model of its GPU; null: it trains on CPUs."""


class Placement(Message):
    """Where all ranks of an attempt run, sent once all have come."""

    fence: Fence
    ranks: Annotated[list[RankPlacement], Field(max_length=MOST_WORKERS)]


class GuaranteesReport(Message):
    """What holds for the job, and why, sent at the first step of an attempt."""

    fence: Fence
    guarantees: Guarantees


class CheckpointFact(Message):
    """A checkpoint that is complete on storage. epoch and step: finished ones. digest: of its manifest.

    kept: steps of all of the attempt's checkpoints that exist now; None: a driver that does not say.
    metrics: of the epoch that its step ends; empty in the middle of one. best_step: that of the best checkpoint so far,
    as train.keep_best judges; None: there is none.
    """

    fence: Fence
    path: Path
    step: Step
    epoch: Epoch
    digest: Digest
    size_bytes: Bytes
    kept: Annotated[list[Step], Field(max_length=1000)] | None = None
    metrics: Metrics | None = None
    best_step: Step | None = None


class Event(Message):
    """An event worth recording: a phase begun, a non-finite batch, a fall-back to an older checkpoint."""

    fence: Fence
    kind: Word
    message: Text
    data: Annotated[dict[str, Any], fitting(16_384, depth=8)] = {}


class Exit(Message):
    fence: Fence
    result: Result


class ThreadStack(Message):
    """What one thread does."""

    name: ShortName
    """Name of the thread."""
    stack: Stack
    """Its Python stack, most recent call last, as in a traceback."""


class Stacks(Message):
    """What all threads of a process were doing when `request` reached it; rank -1 is the driver."""

    fence: Fence
    rank: Speaker
    request: Sequence
    threads: Annotated[list[ThreadStack], Field(max_length=MOST_THREADS)]


class RequestWatch(Message):
    """A process asks what is asked of it. The answer comes once there is another request than `known`, or after
    `wait_s`; at once if `known` is None, from a process that has just begun."""

    fence: Fence
    rank: Speaker
    known: Annotated[int, Field(ge=0, le=2**53)] | None
    wait_s: Annotated[float, Field(ge=0, le=LONGEST_WAIT_S)] = LONGEST_WAIT_S


class Requests(BaseModel):
    """What is asked of the processes of an attempt. newest: number of the newest request; 0: there was none.

    stacks: whether one since the known one is for stacks. profile: the newest of those for a profile.
    """

    model_config = ConfigDict(frozen=True)

    newest: int
    stacks: bool = False
    profile: ProfileRequest | None = None


class StacksWanted(Message):
    """A rank that waits in vain for another one wants the stacks of all."""

    fence: Fence


class Profile(Message):
    """What a rank measured on `request`, or why it did not."""

    fence: Fence
    rank: Rank
    request: Sequence
    answer: ProfileAnswer


class SecretsRequest(Message):
    fence: Fence


class SecretValues(Message):
    """Value by variable, for those of the spec's env that name a secret."""

    values: dict[str, str]


class Reply(BaseModel):
    """The answer to every message. stop: stop after the current batch, with a checkpoint."""

    model_config = ConfigDict(frozen=True)

    stop: StopRequest | None = None
    lease_s: float = 60.0


def attempt_id(job_id: str, attempt: int) -> str:
    """Also the submission_id on Ray."""
    return f"{job_id}-{attempt}"


def job_folder(storage: str, job_id: str) -> str:
    """Everything of a job."""
    return f"{storage.rstrip('/')}/jobs/{job_id}"


def attempt_folder(storage: str, job_id: str, attempt: int) -> str:
    return f"{job_folder(storage, job_id)}/attempts/{attempt}"


def export_folder(storage: str, job_id: str, name: str, start: int) -> str:
    """Folder of one start of a later export: a start that was given up can't harm its successor."""
    return f"{job_folder(storage, job_id)}/exports/{name}/{start}"
