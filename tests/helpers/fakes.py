"""A cluster and a tracking server in memory, with drivers that work when told to and faults that can be switched on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from syncnorm.service.integrations.mlflow_run_facts import world_size_tags
from syncnorm.service.integrations.mlflow_runs import Run, TrackingUnreachableError
from syncnorm.service.integrations.ray_jobs import ClusterState, ClusterUnreachableError, Kind, Submission
from syncnorm.service.jobs.attempt_ending import RayStatus
from syncnorm.service.jobs.job import Attempt, Job
from syncnorm.service.jobs.study import Study
from syncnorm.service.store import Store
from syncnorm.trainer.contract.failure import FailureReason
from syncnorm.trainer.contract.plan import NodeCapacity
from syncnorm.trainer.contract.protocol import (
    EXPORT_FILE,
    LAUNCH_FILE,
    RESULT_FILE,
    CheckpointFact,
    ExportRecord,
    ExportRequest,
    Launch,
    ModelRecord,
    Outcome,
    Result,
)


class Clock:
    """Time that moves when told to."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@dataclass
class FakeDriver:
    """One driver process: what it does follows from labels of its job, one value an attempt, joined by dots.

    phases: what it reports, joined by `-` (default training-finalizing; none: nothing). outcome: succeeded, silent
    (dies without a result), deaf (ignores a stop), or the failure reason it ends with. works: looks a phase takes.
    export: how the export of one that succeeds ends, certified, failed or skipped (default: its result does not say).
    """

    launch: Launch
    folder: Path
    phase: int = 0
    works: int = 0

    def label(self, name: str, default: str) -> str:
        values = self.launch.spec.labels.get(name, default).split(".")
        return values[min(self.launch.attempt, len(values)) - 1]

    def export(self) -> tuple[ExportRecord | None, ModelRecord | None]:
        state: Any = self.label("export", "unsaid")
        if state == "unsaid":
            return None, None
        if state == "certified":
            proof = {"passed": True, "files": {}, "checks": []}
            return ExportRecord(state=state), ModelRecord(uri="models:/m-own", registered=None, certificate=proof)
        return ExportRecord(state=state, reason="not_exportable", message="It branches on values."), None

    @property
    def phases(self) -> list[str]:
        text = self.label("phases", "training-finalizing")
        return [] if text == "none" else text.split("-")


@dataclass
class FakeExporter:
    """One process of a later export: what becomes of it follows from the job's label `exports`, one value a start,
    joined by dots: succeeded, silent (dies without a result), or a failure reason. It takes `export_works` looks."""

    request: ExportRequest
    folder: Path
    works: int = 0

    @property
    def start(self) -> int:
        return int(self.folder.name)

    def label(self, name: str, default: str) -> str:
        values = self.request.spec.labels.get(name, default).split(".")
        return values[min(self.start, len(values)) - 1]

    def result(self) -> Result | None:
        outcome = self.label("exports", "succeeded")
        if outcome == "silent":
            return None
        if outcome != "succeeded":
            reason = FailureReason(outcome)
            return Result(fence=self.request.fence, outcome="failed", reason=reason, message="It raised.")
        proof = {"passed": True, "files": {"model.onnx": "0" * 64}, "checks": []}
        model = ModelRecord(uri=f"models:/m-{self.start}", registered=None, certificate=proof)
        return Result(fence=self.request.fence, outcome="succeeded", model=model)


@dataclass
class FakeCluster:
    """A dispatcher over drivers that live in this object."""

    store: Store
    session: str = "session-1"
    reachable: bool = True
    nodes: tuple[tuple[str, float, float], ...] = (("node-1", 4.0, 0.0),)
    submissions: dict[str, Submission] = field(default_factory=dict)
    drivers: dict[str, FakeDriver] = field(default_factory=dict)
    exporters: dict[str, FakeExporter] = field(default_factory=dict)
    starts: Counter[str] = field(default_factory=Counter)
    ended: list[str] = field(default_factory=list)
    """What the service had ended."""
    forgotten: list[str] = field(default_factory=list)
    """Ended submissions whose record the service needs no more."""
    lease_s: float = 30.0

    def observe(self) -> ClusterState:
        self._require()
        nodes = tuple(NodeCapacity(name, cpus, gpus, cpus, gpus) for name, cpus, gpus in self.nodes)
        return ClusterState(self.session, nodes, dict(self.submissions))

    def start(self, attempt_id: str, folder: str, kind: Kind = "attempt") -> None:
        self._require()
        if attempt_id in self.submissions:
            return
        self.starts[attempt_id] += 1
        self.submissions[attempt_id] = Submission(RayStatus.RUNNING, self.nodes[0][0])
        if kind == "export":
            request = ExportRequest.model_validate_json((Path(folder) / EXPORT_FILE).read_text())
            self.exporters[attempt_id] = FakeExporter(request, Path(folder))
            return
        launch = Launch.model_validate_json((Path(folder) / LAUNCH_FILE).read_text())
        self.drivers[attempt_id] = FakeDriver(launch, Path(folder))

    def end(self, attempt_id: str) -> None:
        self._require()
        if attempt_id in self.submissions:
            self.ended.append(attempt_id)
            self.kill(attempt_id)

    def forget(self, attempt_id: str) -> None:
        if (seen := self.submissions.get(attempt_id)) is not None and seen.status is RayStatus.ENDED:
            self.forgotten.append(attempt_id)

    def kill(self, attempt_id: str) -> None:
        """The driver is gone, and the cluster noticed."""
        self.drivers.pop(attempt_id, None)
        self.exporters.pop(attempt_id, None)
        self.submissions[attempt_id] = replace(self.submissions[attempt_id], status=RayStatus.ENDED)

    def restart(self) -> None:
        """The head comes back without its memory, and without the drivers."""
        self.session = f"session-{int(self.session.split('-')[1]) + 1}"
        self.submissions.clear()
        self.drivers.clear()
        self.exporters.clear()

    def work(self) -> None:
        """Every living driver does its next bit."""
        for attempt_id, driver in list(self.drivers.items()):
            self._work(attempt_id, driver)
        for submission_id, exporter in list(self.exporters.items()):
            exporter.works += 1
            if exporter.works > int(exporter.label("export_works", "1")):
                if (result := exporter.result()) is not None:
                    (exporter.folder / RESULT_FILE).write_text(result.model_dump_json())
                self.kill(submission_id)

    def _work(self, attempt_id: str, driver: FakeDriver) -> None:
        phase = driver.phases[driver.phase] if driver.phase < len(driver.phases) else None
        fence, step = driver.launch.fence, driver.works
        if phase is not None or driver.works < int(driver.label("works", "1")):
            job = self.store.reports.heartbeat(attempt_id, fence, self.lease_s, phase, step)
            if job is None:
                self.kill(attempt_id)  # another attempt has taken over
                return
            if job.stop is not None and driver.label("outcome", "succeeded") != "deaf":
                self._stop(attempt_id, driver)
                return
            driver.works += 1
            driver.phase += driver.works % int(driver.label("works", "1")) == 0
            return
        self._finish(attempt_id, driver)

    def _stop(self, attempt_id: str, driver: FakeDriver) -> None:
        path = str(driver.folder / "checkpoint")
        fence, step = driver.launch.fence, driver.works
        fact = CheckpointFact(fence=fence, path=path, step=step, epoch=0, digest="0", size_bytes=1)
        self.store.reports.add_checkpoint(attempt_id, fact)
        self._leave(attempt_id, driver, Result(fence=fence, outcome="stopped", step=step, checkpoint=path))

    def _finish(self, attempt_id: str, driver: FakeDriver) -> None:
        outcome = driver.label("outcome", "succeeded")
        if outcome == "silent":
            self.kill(attempt_id)
            return
        good = outcome in ("succeeded", "deaf")
        word: Outcome = "succeeded" if good else "failed"
        reason = None if good else FailureReason(outcome)
        export, model = driver.export() if good else (None, None)
        result = Result(
            fence=driver.launch.fence,
            outcome=word,
            reason=reason,
            message="",
            step=driver.works,
            model=model,
            export=export,
        )
        self._leave(attempt_id, driver, result)

    def _leave(self, attempt_id: str, driver: FakeDriver, result: Result) -> None:
        (driver.folder / RESULT_FILE).write_text(result.model_dump_json())
        self.kill(attempt_id)

    def _require(self) -> None:
        if not self.reachable:
            raise ClusterUnreachableError("switched off")


@dataclass
class FakeTracker:
    """MLflow runs in a dict."""

    reachable: bool = True
    runs: dict[str, str] = field(default_factory=dict)
    """Run id by job id."""
    status: dict[str, str] = field(default_factory=dict)
    """Status by run id."""
    notes: dict[str, str] = field(default_factory=dict)
    """Page by run id."""
    sizes: dict[str, dict[str, str]] = field(default_factory=dict)
    """Tags of the world size by job id."""
    described: dict[str, int] = field(default_factory=dict)
    """How many attempts a run was last described with, by run id."""
    refuses: list[str] = field(default_factory=list)
    """Names that it does not take."""
    models: dict[str, dict[str, str]] = field(default_factory=dict)
    """Tags of a model by its URI."""

    def run_for(self, job: Job, attempts: Sequence[Attempt], note: str) -> Run:
        self._require()
        self.sizes[job.id] = world_size_tags(job, attempts)
        run_id = self.runs.setdefault(job.id, f"run-{len(self.runs) + 1}")
        self.status.setdefault(run_id, "RUNNING")
        self.notes[run_id] = note
        return Run("1", run_id)

    def describe(self, run_id: str, job: Job, attempts: Sequence[Attempt]) -> list[str]:
        del job
        self._require()
        self.described[run_id] = len(attempts)
        return list(self.refuses)

    def set_status(self, run_id: str, status: str, note: str) -> None:
        self._require()
        self.status[run_id] = status
        self.notes[run_id] = note

    def histories(self, run_id: str, prefixes: tuple[str, ...]) -> dict[str, list[tuple[int, float]]]:
        self._require()
        return {f"{prefixes[0]}bn1/drift": [(1, 0.5)]} if run_id in self.status else {}

    def model_tags(self, uri: str) -> dict[str, str] | None:
        self._require()
        return self.models.get(uri)

    def is_answering(self) -> bool:
        return self.reachable

    def _require(self) -> None:
        if not self.reachable:
            raise TrackingUnreachableError("switched off")


@dataclass
class FakeStudyRuns:
    """MLflow runs of studies in dicts."""

    reachable: bool = True
    runs: dict[str, str] = field(default_factory=dict)
    """Run id by study id."""
    parents: dict[str, str] = field(default_factory=dict)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    status: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)

    def run_for_study(self, study: Study) -> Run:
        self._require()
        return Run("1", self.runs.setdefault(study.id, f"study-run-{len(self.runs) + 1}"))

    def group(self, run_id: str, parent_run_id: str) -> None:
        self._require()
        self.parents[run_id] = parent_run_id

    def upload(self, run_id: str, files: Mapping[str, bytes]) -> None:
        self._require()
        self.files[run_id] = dict(files)

    def finish(self, run_id: str, status: str, note: str, metrics: Mapping[str, float]) -> None:
        self._require()
        self.status[run_id] = status
        self.notes[run_id] = note
        self.metrics[run_id] = dict(metrics)

    def _require(self) -> None:
        if not self.reachable:
            raise TrackingUnreachableError("switched off")
