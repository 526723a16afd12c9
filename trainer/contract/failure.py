"""Why a job failed: a closed list, each with who has to act and whether a retry can help."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class FailureReason(StrEnum):
    """The one reason why a job failed or was stopped."""

    USER_ERROR = "user_error"
    OUT_OF_MEMORY = "out_of_memory"
    NON_FINITE = "non_finite"
    DATA_MISSING = "data_missing"
    WORKER_LOST = "worker_lost"
    NODE_LOST = "node_lost"
    COLLECTIVE_TIMEOUT = "collective_timeout"
    STARTUP_TIMEOUT = "startup_timeout"
    NO_CAPACITY = "no_capacity"
    PREEMPTED = "preempted"
    DEADLINE = "deadline"
    CHECKPOINT_CORRUPT = "checkpoint_corrupt"
    EXPORT_MISMATCH = "export_mismatch"
    STORAGE = "storage"
    CANCELLED_BY_USER = "cancelled_by_user"
    INTERNAL = "internal"


class ExportReason(StrEnum):
    """Why a job that succeeded has no certified model, besides what may happen to any process."""

    EXPORT_MISMATCH = "export_mismatch"
    NOT_EXPORTABLE = "not_exportable"
    NO_FORWARD = "no_forward"
    INPUTS_UNCLEAR = "inputs_unclear"
    LAYERS_OUTSIDE = "layers_outside"


SKIPPED = frozenset({ExportReason.NO_FORWARD, ExportReason.INPUTS_UNCLEAR, ExportReason.LAYERS_OUTSIDE})
"""Reasons for which no export is tried: the network, as it is written, has nothing to export."""


@dataclass(frozen=True)
class Advice:
    """turn: who has to act (`user`, `operator` or `nobody`). retryable: another attempt may succeed with nothing
    changed."""

    turn: str
    retryable: bool
    text: str


ADVICE: dict[FailureReason, Advice] = {
    FailureReason.USER_ERROR: Advice(
        "user",
        False,
        "Your code, model or data raised an error; the traceback is in the logs. Change it and submit again.",
    ),
    FailureReason.OUT_OF_MEMORY: Advice(
        "user",
        False,
        "A worker ran out of memory. Lower data.batch_size, use a lower train.precision, or ask for larger workers.",
    ),
    FailureReason.NON_FINITE: Advice(
        "user",
        False,
        "Loss or gradients stayed NaN or infinite. Lower optimizer.lr, set train.clip_grad_norm, or check the data.",
    ),
    FailureReason.DATA_MISSING: Advice(
        "user", False, "The data could not be found or read on a worker. Check the path in data.init_args."
    ),
    FailureReason.WORKER_LOST: Advice(
        "nobody",
        True,
        "A worker process died. Attempts continue from the last checkpoint until limits.max_failures is used up.",
    ),
    FailureReason.NODE_LOST: Advice(
        "nobody", True, "A host left the cluster. Attempts continue elsewhere until limits.max_failures is used up."
    ),
    FailureReason.COLLECTIVE_TIMEOUT: Advice(
        "operator",
        True,
        "Workers lost contact with each other. The message names the rank that was stuck; check its host.",
    ),
    FailureReason.STARTUP_TIMEOUT: Advice(
        "operator", True, "The workers did not come up in time. Check the cluster's load and the Ray logs."
    ),
    FailureReason.NO_CAPACITY: Advice(
        "operator",
        False,
        "The cluster does not have the resources that the job asks for. Lower resources.workers or add hosts.",
    ),
    FailureReason.PREEMPTED: Advice(
        "nobody", True, "A job of higher priority needed the capacity. This one continues from its checkpoint."
    ),
    FailureReason.DEADLINE: Advice(
        "user", False, "The last checkpoint is kept: raise limits.deadline_s of the job, then retry it."
    ),
    FailureReason.CHECKPOINT_CORRUPT: Advice(
        "operator", False, "No checkpoint of the job passes its digests. Check the storage, then submit again."
    ),
    FailureReason.EXPORT_MISMATCH: Advice(
        "user",
        False,
        "There is no certified model, so nothing was registered; the trained weights are in the run. Change what the "
        "message names, or leave out export.required.",
    ),
    FailureReason.STORAGE: Advice(
        "operator", False, "Checkpoints or exports could not be written. Free space or repair the storage, then retry."
    ),
    FailureReason.CANCELLED_BY_USER: Advice("nobody", False, "Cancelled on request."),
    FailureReason.INTERNAL: Advice(
        "operator",
        True,
        "Internal error of the service. Please report it with the request id and the logs of the attempt.",
    ),
}


REPORT = "please report this with the logs of the attempt."
"""The end of a message that names what code of the user's may have done: the service is to blame only if it didn't."""


def advised(message: str, reason: FailureReason) -> str:
    """`message` with the advice for its reason. One that has it already, or ends with REPORT, stays as it is."""
    advice, said = ADVICE[reason].text, message.rstrip()
    if advice in message or said.endswith(REPORT) or not said:
        return message if said else advice
    stop = "" if said.endswith((".", "!", "?", ":", "…")) else "."
    return f"{said}{stop} {advice}"


def may_be_retried(reason: FailureReason, *, outage: bool = False) -> bool:
    """outage: the storage did not answer. One that refuses, or is full, needs a person first."""
    return outage or ADVICE[reason].retryable
