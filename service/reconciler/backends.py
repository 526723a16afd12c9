"""Shared by all steps of a tick: the ports to the outside, and one observation of the cluster under one lease."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from syncnorm.service.backend_errors import BackendError
from syncnorm.service.background.outage_log import OutageLog
from syncnorm.service.integrations.mlflow_runs import Tracker
from syncnorm.service.integrations.ray_jobs import ClusterState, Dispatcher
from syncnorm.service.jobs.job import Attempt, Job
from syncnorm.service.reconciler.backend_circuit_breaker import BackendCircuitBreaker
from syncnorm.service.reconciler.isolation import GiveUp
from syncnorm.service.storage.circuit_breaker import StorageCircuitBreaker
from syncnorm.service.storage.code_packages import CodePackages
from syncnorm.service.store import Store
from syncnorm.trainer.contract import protocol
from syncnorm.trainer.contract.initial_weights import WeightAccess

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AttemptEnvironment:
    """The addresses and paths for launch files."""

    storage: str
    service_url: str
    mlflow_uri: str
    public_url: str = ""
    """Address of this service for links; empty: service_url."""
    weights: WeightAccess = field(default_factory=WeightAccess)
    """What files jobs may start from."""

    def page(self, job: Job) -> str:
        """The address of the job's page."""
        return f"{self.public_url or self.service_url}/jobs/{job.id}"

    def package(self, job: Job) -> str | None:
        code = job.spec.require().code
        return CodePackages(self.storage).path(code.package) if code else None

    def folder(self, attempt: Attempt) -> str:
        return protocol.attempt_folder(self.storage, attempt.job_id, attempt.number)


class Observer(Protocol):
    """Counts what happened, for metrics."""

    def moved(self, before: Job, after: Job) -> None: ...

    def attempt_ended(self, outcome: str, reason: str) -> None: ...


@dataclass
class Backends:
    """The systems outside that a step may read or change. on_change: called with the id of a job that changed."""

    store: Store
    dispatcher: Dispatcher
    tracker: Tracker
    environment: AttemptEnvironment
    on_change: Callable[[str], None]
    metrics: Observer | None = None
    storage: StorageCircuitBreaker = field(default_factory=StorageCircuitBreaker)
    circuit: BackendCircuitBreaker = field(default_factory=BackendCircuitBreaker)
    outage_log: OutageLog = field(default_factory=lambda: OutageLog(logger))

    def announce(self, before: Job, after: Job) -> None:
        """Notify metrics, log and followers of a change of state."""
        if self.metrics is not None:
            self.metrics.moved(before, after)
        logger.info("job state changed", extra={"job": after.id, "from": before.state.value, "to": after.state.value})
        self.on_change(after.id)

    def end_quietly(self, submission_id: str) -> None:
        """Have Ray stop a submission; retried in the next tick if Ray is unavailable."""
        what = f"end of {submission_id}"
        try:
            self.circuit.ask("ray", lambda: self.dispatcher.end(submission_id))
        except BackendError as error:
            self.outage_log.failed(
                what, "could not stop a Ray submission; retrying on the next tick", what=what, error=str(error)
            )
        else:
            self.outage_log.recovered(what)

    def giving_up(self, job_id: str, tick: Tick) -> GiveUp:
        """Fails a job that can't be handled. Its processes are stopped and its capacity is released as of any other."""

        def give_up(why: str, trace: str) -> None:
            state = self.store.set_aside.job(job_id, why, trace, tick.token)
            logger.error(
                "job failed, because the service could not handle it",
                extra={"job": job_id, "to": str(state), "why": why},
            )
            self.on_change(job_id)

        return give_up


@dataclass(frozen=True)
class Tick:
    """token: of the lease that must still be held for a change. view: of the cluster; None: it is unreachable.

    check: called between two items; raises when the tick must end.
    """

    token: int
    view: ClusterState | None
    check: Callable[[], None] = lambda: None


def attempt_token(fence: str) -> str:
    """The bearer token of an attempt, derived from its fence, so that a launch file can be written again after a
    crash."""
    return hashlib.sha256(f"syncnorm attempt {fence}".encode()).hexdigest()
