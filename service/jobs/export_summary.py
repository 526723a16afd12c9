"""What is said of a job's export: certified, failed, skipped or running. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import ValidationError

from syncnorm.service.jobs.job import JobState
from syncnorm.trainer.contract.failure import FailureReason
from syncnorm.trainer.contract.protocol import ExportRecord, ExportState, Result

OWN = "1"
"""Name of the job's own export."""


@dataclass(frozen=True)
class ExportSummary:
    """name: of the export that is meant; a later one stands in for one that did not give a certified model."""

    state: ExportState
    reason: str | None = None
    message: str = ""
    name: str = OWN

    @property
    def sentence(self) -> str:
        """For a job's message and its event; empty where all is well."""
        if self.state == "running":
            return f"Export {self.name} is running."
        verb = {"failed": "failed", "skipped": "was skipped"}.get(self.state)
        return f"The export {verb}: {self.message}" if verb else self.message


class Exported(Protocol):
    """The columns of a job that tell how its export went."""

    @property
    def state(self) -> str: ...

    @property
    def reason(self) -> str | None: ...

    @property
    def message(self) -> str: ...

    @property
    def model(self) -> dict[str, Any] | None: ...

    @property
    def export(self) -> dict[str, Any] | None: ...


def export_summary(job: Exported) -> ExportSummary | None:
    """None: the job has not come to its export. Jobs of versions that recorded none have a certified model, if any."""
    if job.state == JobState.FINALIZING:
        return ExportSummary("running", message="The export follows the training that is over.")
    if job.state == JobState.FAILED and job.reason == FailureReason.EXPORT_MISMATCH:
        return ExportSummary("failed", job.reason, job.message)
    if job.state != JobState.SUCCEEDED:
        return None
    return stored_summary(job.export) or (ExportSummary("certified") if job.model else None)


def stored_summary(stored: dict[str, Any] | None) -> ExportSummary | None:
    """None also for one that another version stored in another form."""
    if not stored:
        return None
    fields = {name: stored[name] for name in ExportRecord.model_fields if name in stored}
    try:
        record = ExportRecord.model_validate(fields)
    except ValidationError:
        return None
    return ExportSummary(record.state, record.reason, record.message, str(stored.get("name", OWN)))


def summary_of_result(result: Result) -> ExportSummary | None:
    """Of an attempt that succeeded."""
    if result.export is None:
        return ExportSummary("certified") if result.model else None
    return ExportSummary(result.export.state, result.export.reason, result.export.message)
