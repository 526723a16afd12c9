"""Writes params and tags of MLflow runs in the background, so that a large spec or slow MLflow delays no launch."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable

from syncnorm.service.backend_errors import (
    DatabaseUnavailableError,
    RefusedError,
    UnexpectedAnswerError,
    UnreachableError,
)
from syncnorm.service.background.loop import Loop
from syncnorm.service.background.outage_log import OutageLog
from syncnorm.service.integrations.mlflow_runs import Tracker
from syncnorm.service.jobs.job import Job, NewEvent, new_fence
from syncnorm.service.store import Store
from syncnorm.trainer.contract.text import name_some, storable

logger = logging.getLogger(__name__)

LEASE = "descriptions"
_LEASE_S = 60.0
_POLL_S = 1.0
_MOST_A_TICK = 50
_PAUSE_S = 30.0
"""Pause before a run that could not be described is retried."""
_MOST_TRIES = 5
_MOST_SILENCES = 2
"""Failed runs in a row after which MLflow counts as unavailable, and not a single run as at fault."""


class RunDescriber:
    """Works through the runs that are recorded as undescribed. A crash at any point is harmless: the work is
    repeated."""

    def __init__(self, store: Store, tracker: Tracker, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._tracker = tracker
        self._clock = clock
        self._holder = f"{socket.gethostname()}-{os.getpid()}-{new_fence()[:8]}"
        self._outage_log = OutageLog(logger)
        self._not_before: dict[str, float] = {}
        self._tries: dict[str, int] = {}

    def loops(self) -> list[Loop]:
        loop = Loop("run-describer", lambda: self.tick(loop.stopping), lambda: _POLL_S)
        return [loop]

    def tick(self, stop: threading.Event | None = None) -> None:
        """Describe some runs. A run that can't be described now waits, and delays no other."""
        silences = 0
        for job, attempt in self._store.descriptions.pending(_MOST_A_TICK + len(self._not_before)):
            if self._clock() < self._not_before.get(job.id, 0.0):
                continue
            if silences >= _MOST_SILENCES or (stop is not None and stop.is_set()):
                return
            if self._store.leases.take(self._holder, _LEASE_S, LEASE) is None:
                return
            silences = 0 if self._describe(job, attempt) else silences + 1

    def _describe(self, job: Job, attempt: int) -> bool:
        """Whether MLflow answered."""
        assert job.run_id is not None
        try:
            lost = self._tracker.describe(job.run_id, job, self._store.attempts.of_job(job.id))
            problem = _refused(lost) if lost else ""
        except RefusedError as error:
            problem = f"MLflow refused the params and tags of this job's run, so the run has none: {error}"
        except UnreachableError as error:
            self._outage_log.failed(
                job.id, "could not write params and tags of a run; retrying in 30 s", job=job.id, error=str(error)
            )
            self._not_before[job.id] = self._clock() + _PAUSE_S
            return isinstance(error, UnexpectedAnswerError)
        except DatabaseUnavailableError:
            raise
        except Exception as error:
            logger.exception(
                "could not write params and tags of a run; retrying in 30 s, 5 times at most", extra={"job": job.id}
            )
            self._tries[job.id] = self._tries.get(job.id, 0) + 1
            self._not_before[job.id] = self._clock() + _PAUSE_S
            if self._tries[job.id] < _MOST_TRIES:
                return True
            problem = f"The params and tags of this job's run could not be written: {type(error).__name__}: {error}"
        self._settle(job, attempt, problem)
        return True

    def _settle(self, job: Job, attempt: int, problem: str) -> None:
        if problem:
            self._store.history.add_event(
                job.id, NewEvent("run_incomplete", storable(problem, 2000), {"attempt": attempt})
            )
        self._store.descriptions.done(job, attempt)
        self._outage_log.recovered(job.id)
        self._not_before.pop(job.id, None)
        self._tries.pop(job.id, None)


def _refused(names: list[str]) -> str:
    return (
        f"MLflow refused {len(names)} of the params or tags of this job. Its run lacks them, or has earlier values: "
        f"{name_some(names, 10)}. The whole spec is in the artifact spec.yaml."
    )
