"""The reconciliation loop: load, observe, decide, apply. It drives every job towards its requested state.

The steps of a tick are in the other files of this folder. Every effect carries an id chosen beforehand, so the next
tick repairs a crash between any two lines. A failure of one item affects that item only (isolation.py).
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal, TypeVar

from syncnorm.service.backend_errors import BackendError, DatabaseUnavailableError
from syncnorm.service.background.loop import Health, Loop, StoppedError
from syncnorm.service.background.outage_log import OutageLog
from syncnorm.service.integrations.ray_jobs import ClusterState
from syncnorm.service.jobs.attempt_ending import Rules
from syncnorm.service.jobs.instants import after
from syncnorm.service.jobs.job import Attempt, Job, new_fence
from syncnorm.service.reconciler.backends import Backends, Tick
from syncnorm.service.reconciler.cleanup import has_left, release, stop_orphans
from syncnorm.service.reconciler.export_step import ExportStep
from syncnorm.service.reconciler.file_removal import remove_files
from syncnorm.service.reconciler.held_lease import LEASE_S, HeldLease, LeaseLostError
from syncnorm.service.reconciler.isolation import GIVE_UP_TICKS, Isolation
from syncnorm.service.reconciler.job_step import LAUNCH_LEASE_S, JobStep
from syncnorm.service.reconciler.launch_step import LaunchStep
from syncnorm.service.reconciler.polling import PollInterval
from syncnorm.service.scheduling.explanation import ServiceProblems
from syncnorm.service.scheduling.queue import JobQueue
from syncnorm.service.scheduling.schedule import Policy, Schedule
from syncnorm.service.store.columns import UnreadableError
from syncnorm.service.store.rows import Faults
from syncnorm.trainer.contract.plan import NodeCapacity

logger = logging.getLogger(__name__)
T = TypeVar("T")
Role = Literal["leader", "standby"]

_REST_S = 0.1
"""Least pause between two ticks, so that a burst of requests does not cause one tick each."""
STANDBY_POLL_S = 10.0
"""Pause between two observations of a standby replica: frequent enough for users, and little load for Ray."""


class NothingStartedError(Exception):
    """The plan starts jobs, but none could be started."""


class Reconciler:
    """One replica acts at a time, under a lease in the database. Standby replicas observe and plan without changing
    anything.

    So they answer users as the leader does, and know the cluster when they take over.
    """

    def __init__(
        self,
        backends: Backends,
        *,
        rules: Rules = Rules(),  # noqa: B008
        policy: Policy = Policy(),  # noqa: B008
        lease_s: float = 30.0,
        holder: str | None = None,
        cluster_starts_in_s: float = 0.0,
    ) -> None:
        """holder: of the lease, if at most one process is alive, so that its successor need not wait for it.

        cluster_starts_in_s: how long a Ray that starts with this process may take until that counts as an outage.
        """
        self.backends = backends
        self.policy = policy
        self.health = Health("reconciler")
        self.role: Role = "standby"
        self._completed_at = self._observed_at = time.monotonic()
        self._poll_interval = PollInterval()
        self._outage_log = OutageLog(logger)
        self._cluster_due_at = time.monotonic() + cluster_starts_in_s
        self._queue = JobQueue(policy)
        self._token = 0
        self.items = Isolation(backends.store.now, self._can_write)
        self._jobs = JobStep(self.backends, rules, self._queue, self.items)
        self._launches = LaunchStep(self.backends, policy, self._queue, self._jobs, self.items, lease_s)
        self._exports = ExportStep(self.backends, self.items)
        self._lease_s = lease_s
        self._holder = holder or f"{socket.gethostname()}-{os.getpid()}-{new_fence()[:8]}"
        self._stopping = threading.Event()
        self.view: ClusterState | None = None
        """The latest observation of the cluster; None while it is unreachable."""
        self.schedule: Schedule | None = None
        """The latest plan: what starts, and why the others wait."""

    @property
    def capacity(self) -> Sequence[NodeCapacity] | None:
        """The hosts of the cluster; None while it is unreachable."""
        return self.view.capacity if self.view else None

    @property
    def queue(self) -> JobQueue:
        """The waiting jobs as of the latest tick."""
        return self._queue

    def lag_s(self) -> float:
        """Seconds since the last complete tick: jobs and cluster observed, and everything that follows from it."""
        return time.monotonic() - self._completed_at

    def problems(self, job_id: str) -> ServiceProblems:
        """The troubles of this process that `explain` should mention."""
        culprits = tuple(name for (_, name), streak in self.items.failing() if streak.ticks >= GIVE_UP_TICKS)
        since = None if self.health.is_good else self.health.failing_since
        return ServiceProblems(self.items.problem(job_id), since, self.health.error, culprits)

    def loop(self, wake: threading.Event, tick_s: float) -> Loop:
        """Ticks on a thread of its own; an error in one tick does not end it."""
        made = Loop(
            "reconciler", self.tick, lambda: self._rest_s(tick_s), wake=wake, leave=self.leave, health=self.health
        )
        self._stopping = made.stopping
        return made

    def _rest_s(self, tick_s: float) -> float:
        self._stopping.wait(_REST_S)
        return self._poll_interval.pause_s(tick_s)

    def leave(self) -> None:
        """The lease may be another replica's by now, so this tick ends."""
        self.backends.store.leases.give_back(self._holder)

    def tick(self) -> None:
        """Observe once and do everything that follows from it. Raises errors that are not the fault of one item."""
        with self.health.tick():
            token = self.backends.store.leases.take(self._holder, LEASE_S)
            if token is None:
                self._stand_by()
                return
            self.role, self._token = "leader", token
            with HeldLease(lambda: self._renew(token), self._stopping, lease_s=LEASE_S) as lease:
                self._act(token, lease)

    def _renew(self, token: int) -> bool:
        return self.backends.store.leases.renew(self._holder, token, LEASE_S)

    def _can_write(self) -> bool:
        try:
            self._renew(self._token)
        except Exception:
            return False
        return True

    def _act(self, token: int, lease: HeldLease) -> None:
        """Run the steps. One that fails as a whole does not keep the others from running."""
        self.items.begin_tick()
        self.backends.circuit.begin_tick()
        self.view = view = self._observe_cluster()
        tick = Tick(token, view, lease.check)
        steps = _Steps()
        steps.run(lambda: self._advance_jobs(tick))
        exporting = steps.run(lambda: self._exports.advance_all(tick))
        if view is None:
            self.schedule = None
        else:
            left = steps.run(lambda: self._release(tick, view))
            if left is not None and exporting is not None:
                known = {attempt.id for attempt in left} | exporting
                steps.run(lambda: stop_orphans(self.backends, tick, view, known))
            if left is not None:
                steps.run(lambda: self._start(tick, view, left))
            steps.run(lambda: remove_files(self.backends, self.items, tick))
        steps.end()
        self.items.end_tick()
        if view is not None:
            self._completed_at = time.monotonic()

    def _advance_jobs(self, tick: Tick) -> None:
        store = self.backends.store
        self._queue.refresh(store.workload)
        faults: Faults = {}
        attempts = {
            attempt.job_id: self._with_sane_lease(attempt, tick.token)
            for attempt in store.attempts.unreleased(faults)
            if not attempt.ended_at
        }
        of_attempts = {job_id: faults[attempt.id] for job_id, attempt in attempts.items() if attempt.id in faults}
        wanted = attempts.keys() | store.workload.unsettled() | store.workload.strays() | self._queue.unreadable.keys()
        bad: Faults = {}
        jobs = store.workload.jobs(wanted, bad)
        self._set_aside_unreadable(jobs, bad | of_attempts, tick)
        self._jobs.advance_all([job for job in jobs if job.id not in bad | of_attempts], attempts, tick)

    def _set_aside_unreadable(self, jobs: Sequence[Job], faults: Mapping[str, str], tick: Tick) -> None:
        for job in jobs:
            if (fault := faults.get(job.id)) is None:
                self.items.worked("row")
                continue
            error = UnreadableError(f"the stored job can't be read: {fault}")
            self.items.fail("row", job.id, error, self.backends.giving_up(job.id, tick))

    def _release(self, tick: Tick, view: ClusterState) -> list[Attempt]:
        unreleased = self.backends.store.attempts.unreleased()
        self._poll_interval.note_ended(attempt.id for attempt in unreleased if attempt.ended_at)
        return release(self.backends, self.items, tick, view, unreleased)

    def _start(self, tick: Tick, view: ClusterState, left: Sequence[Attempt]) -> None:
        self.schedule, started = self._launches.start_fitting(tick, view, left)
        if self.schedule.starts and not started:
            raise NothingStartedError(f"the plan starts {len(self.schedule.starts)} jobs, but none could be started")

    def _stand_by(self) -> None:
        """Observe and plan like the leader.

        An observation of its own is simpler than one handed over through the database, and shows what this replica
        could do if it took over.
        """
        self.role = "standby"
        now = time.monotonic()
        if self.view is None or now - self._observed_at > STANDBY_POLL_S:
            self.backends.circuit.begin_tick()
            self.view, self._observed_at = self._observe_cluster(), now
        self._queue.refresh(self.backends.store.workload)
        if self.view is None:
            self.schedule = None
            return
        now_there, view = self.backends.store.now(), self.view
        left = [one for one in self.backends.store.attempts.unreleased() if not has_left(one, view, now_there)]
        self.schedule = self._launches.prepare(view, left).schedule
        self._completed_at = now

    def _with_sane_lease(self, attempt: Attempt, token: int) -> Attempt:
        """The attempt with a lease from now on, if its lease ends later than any lease may: then the clock was set
        back.

        A living attempt renews it within seconds; a dead one must not count as alive for all the time the clock went
        back.
        """
        now, longest_s = self.backends.store.now(), max(self._lease_s, LAUNCH_LEASE_S)
        if (attempt.lease_expires_at - now).total_seconds() <= 2 * longest_s:
            return attempt
        expires_at = after(now, longest_s)
        self.backends.store.attempts.note(attempt.id, {"lease_expires_at": expires_at}, token)
        return replace(attempt, lease_expires_at=expires_at)

    def _observe_cluster(self) -> ClusterState | None:
        try:
            view = self.backends.circuit.ask("ray", self.backends.dispatcher.observe)
        except DatabaseUnavailableError:
            raise
        except BackendError as error:
            if time.monotonic() >= self._cluster_due_at:
                self._outage_log.failed("cluster", "Ray unreachable; nothing starts until it answers", error=str(error))
            return None
        self._cluster_due_at = 0.0
        self._outage_log.recovered("cluster")
        return view


class _Steps:
    """Runs the steps of a tick. The first error is raised at the end, except those that end the tick at once."""

    def __init__(self) -> None:
        self._first: Exception | None = None

    def run(self, step: Callable[[], T]) -> T | None:
        """The result of `step`; None if it raised."""
        try:
            return step()
        except (StoppedError, LeaseLostError):
            raise
        except Exception as error:
            if self._first is not None and not isinstance(error, BackendError):
                logger.exception("another step of the same tick failed")
            self._first = self._first or error
            return None

    def end(self) -> None:
        if self._first is not None:
            raise self._first
