"""The loop that makes what is asked for come true: load, observe, decide, apply. Its steps are in service/steps/.

Every effect carries an id chosen beforehand, so that a crash between any two lines is mended by the next tick.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

from service.decide import Rules
from service.dispatch import ClusterUnreachableError, View
from service.jobs import Attempt, new_fence
from service.outages import Outages
from service.pace import Pace
from service.scheduling.plan import Policy, Schedule
from service.steps.later_exports import ExportStep
from service.steps.leftovers import release, stop_orphans
from service.steps.one_job import LAUNCH_LEASE_S, JobStep
from service.steps.ports import Look, Ports
from service.steps.removals import remove_files
from service.steps.starts import Starts
from service.waiting import Waiting
from trainer.plan import NodeCapacity

logger = logging.getLogger(__name__)

_LEASE_S = 15.0
_REST_S = 0.1
"""Between two ticks at least, so that a stream of requests does not make one tick each."""


class Reconciler:
    """One acts at a time, under a lease in the database; any number may stand by."""

    def __init__(
        self,
        ports: Ports,
        *,
        rules: Rules = Rules(),  # noqa: B008
        policy: Policy = Policy(),  # noqa: B008
        lease_s: float = 30.0,
        holder: str | None = None,
    ) -> None:
        """holder: of the lease, where one process at most is alive, so that its successor need not wait for it."""
        self.ports = ports
        self.policy = policy
        self._looked_at = time.monotonic()
        self._pace = Pace()
        self._outages = Outages(logger)
        self._waiting = Waiting(policy)
        self._jobs = JobStep(self.ports, rules, self._waiting)
        self._starts = Starts(self.ports, policy, self._waiting, self._jobs, lease_s)
        self._exports = ExportStep(self.ports)
        self._lease_s = lease_s
        self._holder = holder or f"{socket.gethostname()}-{os.getpid()}-{new_fence()[:8]}"
        self.view: View | None = None
        """The last look at the cluster; None while it can't be reached."""
        self.plan: Schedule | None = None
        """The last plan of what starts and why the others wait."""

    @property
    def capacity(self) -> Sequence[NodeCapacity] | None:
        """The hosts of the cluster; None while it can't be asked."""
        return self.view.capacity if self.view else None

    def lag_s(self) -> float:
        """Since the last look at the jobs and the cluster that succeeded."""
        return time.monotonic() - self._looked_at

    def run(self, stop: threading.Event, wake: threading.Event, tick_s: float) -> None:
        """Tick until told to stop; an error in one tick does not end the loop."""
        while not stop.is_set():
            try:
                self.tick()
            except Exception:
                logger.exception("tick failed; trying again")
            stop.wait(_REST_S)
            wake.wait(self._pace.rest_s(tick_s))
            wake.clear()
        self.ports.store.give_lease_back(self._holder)

    def tick(self) -> None:
        store = self.ports.store
        token = store.take_lease(self._holder, _LEASE_S)
        if token is None:
            return
        self.view = self._look()
        look = Look(token, self.view)
        self._waiting.refresh(store)
        attempts = {
            attempt.job_id: self._redated(attempt, token)
            for attempt in store.unreleased_attempts()
            if not attempt.ended_at
        }
        for job in store.jobs_by_id(attempts.keys() | store.unsettled()):
            self._jobs.advance(job, attempts.get(job.id), look)
        exporting = self._exports.advance_all(look)
        if self.view is None:
            self.plan = None
            return
        self._looked_at = time.monotonic()
        unreleased = store.unreleased_attempts()
        self._pace.saw(attempt.id for attempt in unreleased if attempt.ended_at)
        left = release(self.ports, token, self.view, unreleased)
        stop_orphans(self.ports, self.view, {attempt.id for attempt in left} | exporting)
        self.plan = self._starts.start_what_fits(look, self.view, left)
        remove_files(self.ports)

    def _redated(self, attempt: Attempt, token: int) -> Attempt:
        """With a lease that begins now, if it has more left than any lease lasts: the clock was set back since.

        A living attempt renews it within seconds; a dead one must not count as alive for all the time gone back.
        """
        now, longest_s = self.ports.store.now(), max(self._lease_s, LAUNCH_LEASE_S)
        if (attempt.lease_expires_at - now).total_seconds() <= 2 * longest_s:
            return attempt
        expires_at = now + timedelta(seconds=longest_s)
        self.ports.store.note_attempt(attempt.id, {"lease_expires_at": expires_at}, token)
        return replace(attempt, lease_expires_at=expires_at)

    def _look(self) -> View | None:
        try:
            view = self.ports.dispatcher.look()
        except ClusterUnreachableError as error:
            self._outages.goes_on("cluster", "the cluster can't be asked", error=str(error))
            return None
        self._outages.over("cluster")
        return view
