"""Queries and results of the store besides jobs and attempts."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal, NamedTuple

from syncnorm.service.jobs.actors import Actor, ActorKind, Outcome
from syncnorm.service.jobs.job import Job, NewEvent


@dataclass(frozen=True)
class StoredEvent:
    seq: int
    job_id: str
    at: datetime
    kind: str
    message: str
    data: dict[str, Any] | None
    actor_kind: ActorKind | None
    """None in rows from before it was recorded, as are the following."""
    actor: str | None
    token_id: str | None
    request_id: str | None

    @property
    def by(self) -> Actor | None:
        """Who did it; None in rows from before it was recorded."""
        if self.actor_kind is None:
            return None
        return Actor(self.actor_kind, self.actor, self.token_id, self.request_id)


@dataclass(frozen=True)
class StoredLine:
    id: int
    attempt: int
    rank: int
    seq: int
    at: str
    level: str
    text: str


@dataclass(frozen=True)
class StoredCheckpoint:
    job_id: str
    attempt: int
    step: int
    epoch: int
    path: str
    digest: str
    size_bytes: int
    at: datetime
    metrics: dict[str, Any] | None = None
    best_step: int | None = None
    problem: str | None = None
    """What of its row can't be read, as below."""


@dataclass(frozen=True)
class StoredStacks:
    """What the threads of one process were doing; rank -1 is the driver. request: which request it answers."""

    attempt: int
    rank: int
    request: int
    at: datetime
    threads: list[dict[str, str]]
    problem: str | None = None


@dataclass(frozen=True)
class StoredProfile:
    """What one rank said to a request for a profile. answer: a ProfileAnswer."""

    attempt: int
    rank: int
    request: int
    at: datetime
    answer: dict[str, Any]
    problem: str | None = None


@dataclass(frozen=True)
class StoredToken:
    """digest: SHA-256 of the token; the token itself is not stored."""

    id: str
    owner: str
    digest: str
    scopes: list[str]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    problem: str | None = None


@dataclass(frozen=True)
class StoredSecret:
    """A secret without its value."""

    name: str
    updated_at: datetime
    problem: str | None = None


@dataclass(frozen=True)
class AuditEntry:
    """Who did what to which object, with the values that changed. See actors.NewAuditEntry."""

    seq: int
    at: datetime
    actor_kind: ActorKind
    owner: str
    token_id: str | None
    action: str
    object: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    outcome: Outcome
    detail: str
    count: int
    request_id: str


@dataclass(frozen=True)
class AuditQuery:
    """Filters of the audit.

    actor: an owner or the id of a token. action: `job.cancel`, or `job` for all about jobs. before: the number after
    which to continue, newest first.
    """

    actor: str | None = None
    action: str | None = None
    object: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    before: int | None = None
    limit: int = 50


@dataclass(frozen=True)
class StoredResponse:
    """The stored answer to a request with an Idempotency-Key."""

    request_hash: str
    answer: dict[str, Any]


@dataclass(frozen=True)
class NewJob:
    """A job to store, with its first event. key, answer: the answer to repeat if the same key comes again."""

    job: Job
    event: NewEvent
    key: str | None = None
    answer: StoredResponse | None = None


class AddOutcome(StrEnum):
    STORED = "stored"
    TOO_MANY = "too_many"
    """Nothing was stored, because the owner has reached the limit of unfinished jobs."""


class GrowOutcome(StrEnum):
    STORED = "stored"
    TOO_MANY = "too_many"
    """Nothing was stored, because the owner has reached the limit of unfinished jobs."""
    CHANGED = "changed"
    """Nothing was stored, because the study has other seeds than it was read with."""


class VerbResult(NamedTuple):
    """The outcome of a verb on a job: changed, so already, or refused because of its state."""

    job: Job
    outcome: Literal["done", "unchanged", "refused"]


class ListedJob(NamedTuple):
    """A job in a list. labels, spec: as JSON text, since they are passed on unread. spec, guarantees: None unless
    requested."""

    id: str
    name: str
    project: str
    owner: str
    state: str
    reason: str | None
    message: str
    priority: int
    norm: str
    labels: str
    spec: str | None
    attempt: int
    workers: int
    world_size: int | None
    progress: dict[str, Any] | None
    experiment_id: str | None
    run_id: str | None
    model: dict[str, Any] | None
    export: dict[str, Any] | None
    guarantees: dict[str, Any] | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    version: int


Heads = tuple[int, int]
"""The newest event and the newest log line."""


@dataclass(frozen=True)
class Changes:
    heads: Heads
    job_ids: set[str]


@dataclass(frozen=True)
class JobQuery:
    """Filters and order of the job list.

    states: any of them; labels: all of them. sort: a name of `listing.SORTS`, newest or highest first with a minus.
    after: where the page before ended, as (sort value, id). full: with specs.
    """

    states: tuple[str, ...] = ()
    project: str | None = None
    owner: str | None = None
    norm: str | None = None
    name: str | None = None
    id_prefix: str | None = None
    labels: tuple[tuple[str, str], ...] = ()
    created_after: datetime | None = None
    sort: str = "-created_at"
    after: tuple[Any, str] | None = None
    limit: int = 50
    full: bool = True
