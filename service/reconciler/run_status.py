"""The MLflow run of a job follows its state."""

from __future__ import annotations

import logging
from datetime import datetime

from syncnorm.service.backend_errors import RefusedError, UnreachableError
from syncnorm.service.integrations.mlflow_note import run_note
from syncnorm.service.jobs.instants import after
from syncnorm.service.jobs.job import RUN_STATUS, Job
from syncnorm.service.reconciler.backends import Backends

logger = logging.getLogger(__name__)

_PAUSE_S = 60.0
"""Between two tries of a status that MLflow refused."""
_LONGEST_S = 86_400.0
"""How long after its job such a run is still tried: it was deleted for good, or an operator has to help."""


class RunStatus:
    """Gives the MLflow run the status and the note of its job, until MLflow has taken them."""

    def __init__(self, backends: Backends) -> None:
        self._backends = backends
        self._outage_log = backends.outage_log
        self._not_before: dict[str, datetime] = {}
        """By job."""

    def settle(self, job: Job) -> None:
        """Write the status of a job's run if it is not the one that MLflow has."""
        wanted = RUN_STATUS[job.state]
        if job.run_status == wanted or self._rests(job):
            return
        if self.update(job):
            self._backends.store.jobs.note(job, {"run_status": wanted})

    def update(self, job: Job) -> bool:
        """Write status and note of the MLflow run. Returns whether there is nothing more to do."""
        if job.run_id is None:
            return False
        what = f"status of run {job.run_id}"
        run_id, note = job.run_id, self.note(job)
        try:
            self._backends.circuit.ask(
                "mlflow", lambda: self._backends.tracker.set_status(run_id, RUN_STATUS[job.state], note)
            )
        except UnreachableError as error:
            self._outage_log.failed(
                what,
                "could not set the status of an MLflow run; retrying on the next tick",
                run=run_id,
                error=str(error),
            )
            return False
        except RefusedError as error:
            return self._refused(job, run_id, what, error)
        self._outage_log.recovered(what)
        return True

    def _refused(self, job: Job, run_id: str, what: str, error: RefusedError) -> bool:
        now = self._backends.store.now()
        if job.finished_at is not None and now > after(job.finished_at, _LONGEST_S):
            logger.warning(
                "MLflow still refuses the status of a run a day after its job; the run keeps its old one",
                extra={"run": run_id, "error": str(error)},
            )
            return True
        self._outage_log.failed(
            what,
            "MLflow refused the status of a run; retrying every minute, for a day after the job at most",
            run=run_id,
            error=str(error),
        )
        self._not_before[job.id] = after(now, _PAUSE_S)
        return False

    def _rests(self, job: Job) -> bool:
        now = self._backends.store.now()
        self._not_before = {job_id: until for job_id, until in self._not_before.items() if now < until}
        return job.id in self._not_before

    def note(self, job: Job) -> str:
        """The note of its MLflow run. A spec of another version must not keep a job from starting or ending."""
        try:
            return run_note(job, self._backends.environment.page(job))
        except Exception:
            logger.exception("could not make the note of an MLflow run; it gets a short one", extra={"job": job.id})
            return f"**{job.id}** {job.state.value}"
