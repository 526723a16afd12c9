"""What becomes of a recorded profile, in the background: its summary for the caller, its trace for the run."""

from __future__ import annotations

import logging
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx

from syncnorm.trainer.contract.profile import MOST_LAYERS, MOST_OPERATORS, ProfileAnswer, ProfileRequest, ProfileSummary
from syncnorm.trainer.contract.protocol import Launch
from syncnorm.trainer.contract.text import text_of
from syncnorm.trainer.debugging.profiler_session import Recording
from syncnorm.trainer.debugging.trace_file import TraceError, TraceWork, process
from syncnorm.trainer.errors import StorageError
from syncnorm.trainer.reporting.fence_check import is_current
from syncnorm.trainer.reporting.metric_spool import rest_client
from syncnorm.trainer.reporting.reporter import Reporter
from syncnorm.trainer.reporting.run_logger.journal_sender import upload
from syncnorm.trainer.storage.attempt_layout import AttemptFolders

logger = logging.getLogger(__name__)

MOST_TRACE_BYTES = 32 * 2**20
_PAUSES_S = (1.0, 2.0, 5.0, 10.0)
"""Between tries to bring the trace into the run. After that it stays in the job's files."""


class ProfileDelivery:
    """Of one rank. Nothing here raises: what goes wrong is part of the answer."""

    def __init__(self, launch: Launch, folders: AttemptFolders, reporter: Reporter, rank: int) -> None:
        self._launch = launch
        self._folders = folders
        self._reporter = reporter
        self._rank = rank
        self._thread: threading.Thread | None = None

    @property
    def is_busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def refuse(self, request: ProfileRequest, problem: str) -> None:
        self._reporter.profile(request.number, ProfileAnswer(problem=problem))

    def deliver(self, request: ProfileRequest, recording: Recording, notes: list[str]) -> None:
        work = (request, recording, notes)
        self._thread = threading.Thread(target=self._run, args=work, name="profile delivery", daemon=True)
        self._thread.start()

    def close(self, timeout_s: float) -> None:
        """Wait for the last profile."""
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _run(self, request: ProfileRequest, recording: Recording, notes: list[str]) -> None:
        try:
            self._reporter.profile(request.number, self._answer(recording, notes))
        except Exception as error:  # of whatever kind: looking into a job must never harm it
            logger.warning("the profile could not be evaluated: %s: %s", type(error).__name__, error)
            self.refuse(request, f"The profile could not be evaluated: {text_of(error)}.")

    def _answer(self, recording: Recording, notes: list[str]) -> ProfileAnswer:
        name = f"profile/step-{recording.first_step}-rank-{self._rank}.json.gz"
        target = self._folders.artifacts / name
        with tempfile.TemporaryDirectory(prefix="syncnorm-profile-") as scratch:
            raw = Path(scratch) / "trace.json"
            recording.save(raw)
            work = TraceWork(
                raw=str(raw),
                target=str(target),
                nodes=recording.nodes,
                on_device=recording.on_device,
                hidden=list(self._reporter.hidden),
                most_bytes=MOST_TRACE_BYTES,
                most_layers=MOST_LAYERS,
                most_operators=MOST_OPERATORS,
            )
            try:
                found = process(work)
            except TraceError as error:
                return ProfileAnswer(problem=f"The profile could not be evaluated: {error}.", notes=notes)
        summary = ProfileSummary(first_step=recording.first_step, **found["summary"])
        if not found["bytes"]:
            limit = f"The trace is not kept: it takes more than {MOST_TRACE_BYTES // 2**20} MiB. Ask for less."
            return ProfileAnswer(summary=summary, notes=[*notes, limit])
        if problem := self._publish(target, name):
            notes = [*notes, problem]
        return ProfileAnswer(summary=summary, trace=name, trace_bytes=found["bytes"], notes=notes)

    def _publish(self, target: Path, name: str) -> str | None:
        """Bring the trace to the job's storage and into its run; returns what went wrong."""
        try:
            self._folders.mirror.publish(target)
        except StorageError as error:
            return f"The trace is not on the storage: {text_of(error)}."
        failure: Any = "the service does not say whether this attempt is current"
        with rest_client(self._launch.mlflow_uri) as client:
            for pause_s in (*_PAUSES_S, 0.0):
                try:
                    if is_current(self._launch):
                        upload(client, self._run_of(client), target, name)
                        return None
                except Exception as error:  # MLflow's client raises errors of many libraries
                    failure = error
                time.sleep(pause_s)
        return f"The trace is among the files of the job, but not in its MLflow run: {text_of(failure)}."

    def _run_of(self, client: httpx.Client) -> dict[str, Any]:
        answer = client.get("runs/get", params={"run_id": self._launch.mlflow_run_id})
        return dict(answer.raise_for_status().json()["run"])
