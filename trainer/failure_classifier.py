"""From an exception to the one reason that a user reads."""

from __future__ import annotations

import errno
import traceback
from collections.abc import Mapping

import requests
import torch
from lightning.pytorch.core.hooks import DataHooks
from pydantic import BaseModel

from syncnorm import norm
from syncnorm.trainer.contract.failure import FailureReason
from syncnorm.trainer.contract.text import storable, text_of
from syncnorm.trainer.errors import (
    CheckpointCorruptError,
    DisagreementError,
    ExportMismatchError,
    NoExportError,
    NonFiniteError,
    PeerFailedError,
    ServiceAwayError,
    StorageAwayError,
    StorageError,
    SupersededError,
    UnreachableError,
)


class Failure(BaseModel):
    """How one rank failed. secondary: it only noticed that another rank had gone. outage: see Result."""

    rank: int
    reason: FailureReason
    secondary: bool
    outage: bool = False
    message: str
    traceback: str


# Texts of gloo and NCCL about a peer that has gone or is silent; they raise plain RuntimeErrors.
_PEER_GONE = ("Connection closed by peer", "Connection reset by peer", "remote process exited", "Broken pipe")
_PEER_SILENT = ("Timed out waiting", "timed out", "Timeout", "timeout")

# Base of what MLflow's client raises once its own retries are used up.
_AWAY = (requests.ConnectionError, requests.Timeout, requests.exceptions.RetryError)

# How torch's allocator for the CPU says it (a RuntimeError), on Linux and elsewhere, and Ray of what it ended itself.
_NO_MEMORY = ("can't allocate memory", "not enough memory", "running low on memory", "memory pressure")


# What torch or Lightning say, and what it means here, where their remedies are no fields of a job.
_IN_OUR_WORDS = {
    "not used in producing the loss": (
        "every trained parameter must take part in the loss of every step on every rank, but some did not. "
        "Return a loss that uses all outputs, or set requires_grad=False on what is not trained."
    ),
}

# What torch says too shortly to act on, and what follows it.
_WITH_ADVICE = {
    "Target ": (
        "A label must be one of the network's classes. Number the labels without gaps, from 0, or from 1 for a "
        "detector, whose 0 is the background. Give the network as many classes."
    ),
    "CUDA error: device-side assert": (
        "An index was out of range on the GPU, mostly a label that is none of the network's classes. The same job with "
        "resources.gpus_per_worker: 0 names it."
    ),
}

_OF_PREPARE_DATA = (
    "Lightning calls prepare_data on one worker of a host, so what it sets is missing on the others. Set it in setup, "
    "which every worker calls."
)

_LONGEST_LINE, _MOST_OF_AN_END = 1000, 8000
"""Characters of a traceback."""


def classify(error: BaseException, rank: int) -> Failure:
    """The failure that `error` on `rank` is."""
    if isinstance(error.__context__, KeyboardInterrupt):
        error = error.__context__  # Lightning sets a signal handler on it, which Ray's threads can't have
    reason, secondary = _reason(error)
    text = text_of(error)
    said = next((ours for sign, ours in _IN_OUR_WORDS.items() if sign in text), text)
    said += next((f" {advice}" for start, advice in _WITH_ADVICE.items() if text.startswith(start)), "")
    said += f". {_OF_PREPARE_DATA}" if rank > 0 and _may_be_of_prepare_data(error) else ""
    return Failure(
        rank=rank,
        reason=reason,
        secondary=secondary,
        outage=isinstance(error, StorageAwayError),
        message=storable(f"{type(error).__name__}{said and ': '}{said}", 4000),
        traceback=_traceback(error),
    )


def _may_be_of_prepare_data(error: BaseException) -> bool:
    """Whether a module or data module of the user misses an attribute, and has a prepare_data that may set it."""
    if not isinstance(error, AttributeError):
        return False
    owners = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__)]
    return any(
        isinstance(owner, DataHooks)
        and type(owner).prepare_data is not DataHooks.prepare_data
        and f"'{type(owner).__name__}' object has no attribute" in str(error)
        for owner in owners
    )


def _traceback(error: BaseException) -> str:
    """Bounded so that a long message leaves the places in the code readable: long lines are cut, then the middle."""
    lines = "".join(traceback.format_exception(error)).splitlines()
    text = "\n".join(storable(line, _LONGEST_LINE) for line in lines)
    if len(text) <= 2 * _MOST_OF_AN_END:
        return text
    return f"{text[:_MOST_OF_AN_END]}\n… [left out]\n{text[-_MOST_OF_AN_END:]}"


def first_cause(failures: list[Failure], world_size: int) -> Failure | None:
    """The failure to show: the lowest rank's among those that did not merely lose a peer.

    If all lost each other and none is missing, they waited in different places, which the lowest rank's message names.
    None: a rank is gone without an error message, so it was killed.
    """
    causes = [failure for failure in failures if not failure.secondary]
    if not causes and len(failures) == world_size:
        causes = failures
    return min(causes, key=lambda failure: failure.rank, default=None)


def explain_silence(
    left: list[Failure], world_size: int, hosts: Mapping[int, str], timeout_s: float
) -> tuple[FailureReason, str]:
    """Reason and sentence for an attempt in which ranks ended, or hung, without an error message.

    left: errors of the others. hosts: `host, pid` by rank, as far as known. If all ranks ran into the timeout, they
    waited for one that hangs; a closed connection means a rank that died.
    """
    known = {failure.rank for failure in left}
    names = [f"rank {rank} ({hosts.get(rank, 'host unknown')})" for rank in range(world_size) if rank not in known]
    who = ", ".join(names)
    if left and all(failure.reason is FailureReason.COLLECTIVE_TIMEOUT for failure in left):
        waited = ", ".join(str(failure.rank) for failure in sorted(left, key=lambda failure: failure.rank))
        where = left[0].message.splitlines()[0][:300]
        message = f"{who} was silent for {timeout_s:g} s while rank {waited} waited for it: {where}."
        return FailureReason.COLLECTIVE_TIMEOUT, message
    return FailureReason.WORKER_LOST, f"The worker process of {who} ended without an error message (killed?)."


def is_mlflow_away(error: BaseException) -> bool:
    """Whether MLflow was unavailable: it may be back for the next attempt. A refusal of MLflow is another matter."""
    if not type(error).__module__.startswith("mlflow."):
        return False
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, _AWAY):
        cause = cause.__cause__ or cause.__context__
    return cause is not None


def says_no_memory(text: str) -> bool:
    return any(sign in text for sign in _NO_MEMORY)


# The first matching row decides.
_BY_TYPE: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], FailureReason], ...] = (
    ((torch.OutOfMemoryError, MemoryError), FailureReason.OUT_OF_MEMORY),
    (NonFiniteError, FailureReason.NON_FINITE),
    (StorageError, FailureReason.STORAGE),
    ((FileNotFoundError, PermissionError), FailureReason.DATA_MISSING),
    ((ExportMismatchError, NoExportError), FailureReason.EXPORT_MISMATCH),
    (CheckpointCorruptError, FailureReason.CHECKPOINT_CORRUPT),
    ((DisagreementError, SupersededError, ServiceAwayError), FailureReason.INTERNAL),
    (UnreachableError, FailureReason.COLLECTIVE_TIMEOUT),
)
_STORAGE_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


def _reason(error: BaseException) -> tuple[FailureReason, bool]:
    """The reason, and whether the error only says that a peer is gone."""
    for kind, reason in _BY_TYPE:
        if isinstance(error, kind):
            return reason, False
    if is_mlflow_away(error):
        return FailureReason.INTERNAL, False
    if isinstance(error, norm.ExchangeError | PeerFailedError):
        is_gone = isinstance(error, norm.WorkerGoneError | PeerFailedError)
        is_gone = is_gone or any(sign in text_of(error) for sign in _PEER_GONE)
        return FailureReason.WORKER_LOST if is_gone else FailureReason.COLLECTIVE_TIMEOUT, True
    if isinstance(error, OSError) and error.errno in _STORAGE_ERRNOS:
        return FailureReason.STORAGE, False
    if isinstance(error, RuntimeError):
        return _reason_of_runtime_error(error)
    return FailureReason.USER_ERROR, False


def _reason_of_runtime_error(error: RuntimeError) -> tuple[FailureReason, bool]:
    text = text_of(error)
    if says_no_memory(text):
        return FailureReason.OUT_OF_MEMORY, False
    if any(sign in text for sign in _PEER_GONE):
        return FailureReason.WORKER_LOST, True
    if isinstance(error, torch.distributed.DistError) or (
        "gloo" in text and any(sign in text for sign in _PEER_SILENT)
    ):
        return FailureReason.COLLECTIVE_TIMEOUT, True
    return FailureReason.USER_ERROR, False
