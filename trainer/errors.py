"""What can go wrong in an attempt or export, besides what norm raises. Imports nothing, so everybody may import it.

    ValueError
        SpecError                  a spec that can't be taken, with every problem found
    OSError
        FileNotFoundError
            MissingDataError       a file of the job's data is not there
        StorageError               something of an attempt could not be read or written
            StorageAwayError       the storage did not answer; it may when asked again
    RuntimeError
        CheckpointCorruptError     files that don't fit their manifest
        DisagreementError          ranks hold different tensors
        ExportMismatchError        the exported model answers otherwise than the trained one
        NoExportError              the network can't be exported, as it is written
        NonFiniteError             loss, gradients or statistics stayed NaN or infinite
        PeerFailedError            another rank has failed before training, and says itself why
        RankFailedError            what a rank tells the driver when it fails
        ServiceAwayError           the service could not be asked
        SupersededError            another attempt has taken over
        UnreachableError           ranks can't exchange anything with the others
    StopRequested                  an outcome, not an error: training ends here on request

`failure_classifier` makes the one reason of a failed job of them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a spec: where, as a dotted path, and what must hold."""

    path: str
    message: str


class SpecError(ValueError):
    """A spec that can't be taken, with every problem found."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        super().__init__("; ".join(f"{problem.path or 'spec'}: {problem.message}" for problem in problems))


class MissingDataError(FileNotFoundError):
    """A file or folder that the job names does not exist, or holds nothing usable."""


class StorageError(OSError):
    """A file of an attempt could not be written or read. Never means that it does not exist."""


class StorageAwayError(StorageError):
    """The storage did not answer: an outage, which may pass without any change."""


class CheckpointCorruptError(RuntimeError):
    """A checkpoint whose files do not match its manifest."""


class DisagreementError(RuntimeError):
    """Ranks that must hold equal tensors do not."""


class ExportMismatchError(RuntimeError):
    """The outputs of the exported model differ from the trained model's."""


class NoExportError(RuntimeError):
    """The network can't be exported, as it is written. The job's weights are published all the same."""

    def __init__(self, reason: str, message: str) -> None:
        """reason: an ExportReason."""
        super().__init__(message)
        self.reason = reason


class NonFiniteError(RuntimeError):
    """Loss, gradients or statistics stayed NaN or infinite."""


class PeerFailedError(RuntimeError):
    """Another rank has failed before training, and says itself why."""


class RankFailedError(RuntimeError):
    """Raised to Ray Train by a rank that fails: its Failure as JSON, for a driver that finds no file of it."""

    def __init__(self, failure: str) -> None:
        super().__init__(failure)
        self.failure = failure


class ServiceAwayError(RuntimeError):
    """The service was unavailable."""


class SupersededError(RuntimeError):
    """Another attempt has taken over; this one must not write anything any more."""


class UnreachableError(RuntimeError):
    """Some ranks can't exchange anything with the others."""


class StopRequested(Exception):  # noqa: N818  (an outcome, not an error)
    """Training ends here on request, on every rank at the same step."""

    def __init__(self, request: str, step: int, checkpoint: str | None) -> None:
        """request: a StopRequest of the protocol."""
        self.request, self.step, self.checkpoint = request, step, checkpoint
        super().__init__(f"{request} requested, stopped after step {step}")
