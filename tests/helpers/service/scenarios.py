"""For every arrow between states, a story in which it happens. Without a story for a new arrow, tests fail."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from syncnorm.service.jobs.actions import Verb
from syncnorm.service.jobs.job import JobState as S
from tests.helpers.service.world import World


@dataclass(frozen=True)
class Story:
    """labels: what the drivers do. asks: (when the job is first seen in this state, ask for that). ends: last state.

    rival: a job of higher priority that fills the cluster comes when the job is first seen in this state.
    """

    ends: S
    labels: dict[str, str] = field(default_factory=dict)
    asks: tuple[tuple[S, Verb], ...] = ()
    limits: dict[str, Any] = field(default_factory=dict)
    rival: S | None = None


_EARLY = {"phases": "none"}
STORIES: dict[tuple[S, S], Story] = {
    (S.QUEUED, S.STARTING): Story(S.SUCCEEDED),
    (S.QUEUED, S.PAUSED): Story(S.SUCCEEDED, asks=((S.QUEUED, "pause"), (S.PAUSED, "resume"))),
    (S.QUEUED, S.CANCELLED): Story(S.CANCELLED, asks=((S.QUEUED, "cancel"),)),
    (S.QUEUED, S.FAILED): Story(S.FAILED, {"outcome": "worker_lost", "phases": "training"}, limits={"deadline_s": 8}),
    (S.STARTING, S.RUNNING): Story(S.SUCCEEDED),
    (S.STARTING, S.FINALIZING): Story(S.SUCCEEDED, {"phases": "finalizing"}),
    (S.STARTING, S.STOPPING): Story(S.CANCELLED, {"works": "9"} | _EARLY, asks=((S.STARTING, "cancel"),)),
    (S.STARTING, S.SUCCEEDED): Story(S.SUCCEEDED, _EARLY),
    (S.STARTING, S.QUEUED): Story(S.SUCCEEDED, {"outcome": "worker_lost.succeeded"} | _EARLY),
    (S.STARTING, S.FAILED): Story(S.FAILED, {"outcome": "user_error"} | _EARLY),
    (S.RUNNING, S.FINALIZING): Story(S.SUCCEEDED),
    (S.RUNNING, S.STOPPING): Story(S.CANCELLED, {"works": "9"}, asks=((S.RUNNING, "cancel"),)),
    (S.RUNNING, S.SUCCEEDED): Story(S.SUCCEEDED, {"phases": "training"}),
    (S.RUNNING, S.QUEUED): Story(S.SUCCEEDED, {"outcome": "silent.succeeded", "phases": "training"}),
    (S.RUNNING, S.FAILED): Story(S.FAILED, {"outcome": "non_finite", "phases": "training"}),
    (S.FINALIZING, S.STOPPING): Story(S.CANCELLED, {"works": "9"}, asks=((S.FINALIZING, "cancel"),)),
    (S.FINALIZING, S.SUCCEEDED): Story(S.SUCCEEDED),
    (S.FINALIZING, S.QUEUED): Story(S.SUCCEEDED, {"outcome": "silent.succeeded"}),
    (S.FINALIZING, S.FAILED): Story(S.FAILED, {"outcome": "export_mismatch"}),
    (S.STOPPING, S.CANCELLED): Story(S.CANCELLED, {"works": "99", "outcome": "deaf"}, asks=((S.RUNNING, "cancel"),)),
    (S.STOPPING, S.PAUSED): Story(S.SUCCEEDED, {"works": "9"}, asks=((S.RUNNING, "pause"), (S.PAUSED, "resume"))),
    (S.STOPPING, S.QUEUED): Story(S.SUCCEEDED, {"works": "9"}, rival=S.RUNNING),
    (S.STOPPING, S.FAILED): Story(S.FAILED, {"works": "9"}, limits={"deadline_s": 8}),
    (S.STOPPING, S.SUCCEEDED): Story(
        S.SUCCEEDED, {"outcome": "deaf", "works": "2", "phases": "training"}, asks=((S.RUNNING, "cancel"),)
    ),
    (S.PAUSED, S.QUEUED): Story(S.SUCCEEDED, {"works": "9"}, asks=((S.RUNNING, "pause"), (S.PAUSED, "resume"))),
    (S.PAUSED, S.CANCELLED): Story(S.CANCELLED, asks=((S.QUEUED, "pause"), (S.PAUSED, "cancel"))),
    (S.FAILED, S.QUEUED): Story(S.SUCCEEDED, {"outcome": "user_error.succeeded"}, asks=((S.FAILED, "retry"),)),
    (S.CANCELLED, S.QUEUED): Story(S.SUCCEEDED, {"works": "9"}, asks=((S.RUNNING, "cancel"), (S.CANCELLED, "retry"))),
}


class Teller:
    """Plays a story in a world, over as many restarts of the service as it takes."""

    def __init__(self, world: World, story: Story) -> None:
        self._world = world
        self._story = story
        self._asks = list(story.asks)
        self._rival = story.rival
        self.jobs = [world.submit(labels=story.labels, limits=story.limits)]

    def is_over(self) -> bool:
        """All jobs are finished, and what they held is free."""
        jobs = [self._world.job(job.id) for job in self.jobs]
        if not all(job.is_terminal for job in jobs) or any(state is jobs[0].state for state, _ in self._asks):
            return False
        return not self._world.store.workload.unsettled() and not self._world.store.attempts.unreleased()

    def prompt(self) -> None:
        """What users do now."""
        state = self._world.job(self.jobs[0].id).state
        if self._asks and self._asks[0][0] is state:
            self._world.apply_verb(self.jobs[0].id, self._asks.pop(0)[1])
        if self._rival is state:
            self._rival = None
            self.jobs.append(self._world.submit(priority=9, resources={"workers": 4}))
