"""The tables. Every change here comes with a migration under migrations/versions."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
    "pk": "pk_%(table_name)s",
}
metadata = sa.MetaData(naming_convention=NAMING)


class Instant(sa.TypeDecorator[datetime]):
    """An aware UTC time, kept as RFC 3339 text of fixed width, so that it sorts and compares alike everywhere."""

    impl = sa.String(27)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, _dialect: sa.Dialect) -> str | None:
        return None if value is None else format_instant(value)

    def process_result_value(self, value: Any, _dialect: sa.Dialect) -> datetime | None:
        """An invalid time stays as it is: one unreadable row must not hide the others of a list."""
        try:
            read = None if value is None else datetime.fromisoformat(value)
        except (TypeError, ValueError):
            return value  # type: ignore[no-any-return]
        return value if read is not None and read.tzinfo is None else read


def format_instant(value: datetime) -> str:
    try:
        value = value.astimezone(UTC)
    except OverflowError:  # the first and the last hours of the calendar, in another time zone
        value = value.replace(tzinfo=UTC)
    # Not strftime: its %Y has no leading zeros before the year 1000.
    return value.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


UNSETTLED = sa.text(
    "stop IS NOT NULL OR (state = 'queued' AND deadline_s IS NOT NULL AND started_at IS NOT NULL) "
    "OR (run_id IS NOT NULL AND (run_status IS NULL OR run_status <> CASE state "
    "WHEN 'queued' THEN 'SCHEDULED' WHEN 'paused' THEN 'SCHEDULED' WHEN 'succeeded' THEN 'FINISHED' "
    "WHEN 'failed' THEN 'FAILED' WHEN 'cancelled' THEN 'KILLED' ELSE 'RUNNING' END))"
)
"""Jobs that need work besides waiting for capacity: a stop was requested, a deadline runs while they wait, or their
MLflow run does not have the status of jobs.RUN_STATUS yet. As text, because an index serves it only word by word."""

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("name", sa.String(120), nullable=False),
    sa.Column("project", sa.String(120), nullable=False),
    sa.Column("owner", sa.String(120), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("stop", sa.String(16)),
    sa.Column("stop_at", Instant),
    sa.Column("stop_by", sa.String(160)),
    sa.Column("reason", sa.String(32)),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("labels", sa.JSON, nullable=False),
    sa.Column("norm", sa.String(32), nullable=False),
    sa.Column("spec", sa.JSON, nullable=False),
    sa.Column("workers", sa.Integer, nullable=False),
    sa.Column("min_workers", sa.Integer),
    sa.Column("world_size", sa.Integer),
    sa.Column("cpus_per_worker", sa.Integer, nullable=False),
    sa.Column("gpus_per_worker", sa.Integer, nullable=False),
    sa.Column("max_failures", sa.Integer, nullable=False),
    sa.Column("grace_s", sa.Float, nullable=False),
    sa.Column("deadline_s", sa.Float),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("failures", sa.Integer, nullable=False),
    sa.Column("stalled", sa.Integer, nullable=False),
    sa.Column("not_before", Instant),
    sa.Column("progress", sa.JSON(none_as_null=True)),
    sa.Column("experiment_id", sa.String(64)),
    sa.Column("run_id", sa.String(64)),
    sa.Column("run_status", sa.String(16)),
    sa.Column("model", sa.JSON(none_as_null=True)),
    sa.Column("export", sa.JSON(none_as_null=True)),
    sa.Column("guarantees", sa.JSON(none_as_null=True)),
    sa.Column("created_at", Instant, nullable=False),
    sa.Column("queued_at", Instant, nullable=False),
    sa.Column("started_at", Instant),
    sa.Column("finished_at", Instant),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Index(None, "state", "id", "version"),
    sa.Index(None, "owner", "state"),
    sa.Index(None, "owner", "id"),
    sa.Index(None, "project", "id"),
    sa.Index(None, "norm", "id"),
    sa.Index(None, "name", "id"),
    sa.Index(None, "priority", "id"),
    sa.Index(None, "finished_at", "id"),
    sa.Index("ix_jobs_unsettled", "id", sqlite_where=UNSETTLED, postgresql_where=UNSETTLED),
)

labels = sa.Table(
    "labels",
    metadata,
    sa.Column("job_id", sa.String(40), sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("name", sa.String(63), primary_key=True),
    sa.Column("value", sa.String(120), nullable=False),
    sa.Index(None, "name", "value", "job_id"),
)

attempts = sa.Table(
    "attempts",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("job_id", sa.String(40), sa.ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("fence", sa.String(32), nullable=False),
    sa.Column("workers", sa.Integer, nullable=False, server_default="1"),
    sa.Column("created_at", Instant, nullable=False),
    sa.Column("lease_expires_at", Instant, nullable=False),
    sa.Column("session", sa.String(120)),
    sa.Column("resume_from", sa.Text),
    sa.Column("resume_step", sa.BigInteger, nullable=False),
    sa.Column("submitted_at", Instant),
    sa.Column("heartbeat_at", Instant),
    sa.Column("stop_sent_at", Instant),
    sa.Column("phase", sa.String(32)),
    sa.Column("phases", sa.JSON(none_as_null=True)),
    sa.Column("step", sa.BigInteger, nullable=False),
    sa.Column("result", sa.JSON(none_as_null=True)),
    sa.Column("outcome", sa.String(16)),
    sa.Column("reason", sa.String(32)),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("placement", sa.JSON(none_as_null=True)),
    sa.Column("ended_at", Instant),
    sa.Column("released_at", Instant),
    sa.UniqueConstraint("job_id", "number"),
    sa.Index(None, "released_at"),
)

exports = sa.Table(
    "exports",
    metadata,
    sa.Column("job_id", sa.String(40), sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("section", sa.JSON, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("created_at", Instant, nullable=False),
    sa.Column("starts", sa.Integer, nullable=False),
    sa.Column("fence", sa.String(32)),
    sa.Column("session", sa.String(120)),
    sa.Column("begun_at", Instant),
    sa.Column("submitted_at", Instant),
    sa.Column("stop_sent_at", Instant),
    sa.Column("gone_at", Instant),
    sa.Column("not_before", Instant),
    sa.Column("reason", sa.String(32)),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("model", sa.JSON(none_as_null=True)),
    sa.Column("started_at", Instant),
    sa.Column("finished_at", Instant),
    sa.Column("released_at", Instant),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Index(None, "released_at"),
)

events = sa.Table(
    "events",
    metadata,
    sa.Column("seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("job_id", sa.String(40), sa.ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    sa.Column("at", Instant, nullable=False),
    sa.Column("kind", sa.String(64), nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("data", sa.JSON(none_as_null=True)),
    sa.Column("actor_kind", sa.String(8)),
    sa.Column("actor", sa.String(120)),
    sa.Column("token_id", sa.String(20)),
    sa.Column("request_id", sa.String(40)),
    sa.Index(None, "job_id", "seq"),
    sqlite_autoincrement=True,  # numbers are never reused: followers resume after the last one they saw
)

log_lines = sa.Table(
    "log_lines",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("job_id", sa.String(40), sa.ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("rank", sa.Integer, nullable=False),
    sa.Column("seq", sa.BigInteger, nullable=False),
    sa.Column("at", sa.String(40), nullable=False),
    sa.Column("level", sa.String(8), nullable=False),
    sa.Column("text", sa.Text, nullable=False),
    sa.UniqueConstraint("job_id", "attempt", "rank", "seq"),
    sa.Index(None, "job_id", "id"),
    sqlite_autoincrement=True,
)

reported = sa.Table(
    "reported",
    metadata,
    sa.Column("job_id", sa.String(40), sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("lines", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("characters", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("pruned", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("pruned_to", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("events", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("progress_seq", sa.BigInteger),
    sa.Column("events_pruned_at", Instant),
)
"""How much the workers of a job have reported.

lines, characters: log lines that are stored; pruned: those that were deleted, up to the id pruned_to. events: those of
workers. progress_seq: the one event that holds the progress of the job.
"""

checkpoints = sa.Table(
    "checkpoints",
    metadata,
    sa.Column("job_id", sa.String(40), sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("attempt", sa.Integer, primary_key=True),
    sa.Column("step", sa.BigInteger, primary_key=True),
    sa.Column("epoch", sa.Integer, nullable=False),
    sa.Column("path", sa.Text, nullable=False),
    sa.Column("digest", sa.String(128), nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("at", Instant, nullable=False),
    sa.Column("metrics", sa.JSON(none_as_null=True)),
    sa.Column("best_step", sa.BigInteger),
)
"""best_step: of the best checkpoint of the job, as its attempt knew when it wrote this one."""

stacks = sa.Table(
    "stacks",
    metadata,
    sa.Column("job_id", sa.String(40), sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("attempt", sa.Integer, primary_key=True),
    sa.Column("rank", sa.Integer, primary_key=True),
    sa.Column("request", sa.BigInteger, nullable=False),
    sa.Column("at", Instant, nullable=False),
    sa.Column("threads", sa.JSON, nullable=False),
)
"""The latest of each process. request: seq of the event that asked for them."""

profiles = sa.Table(
    "profiles",
    metadata,
    sa.Column("job_id", sa.String(40), sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("attempt", sa.Integer, primary_key=True),
    sa.Column("rank", sa.Integer, primary_key=True),
    sa.Column("request", sa.BigInteger, nullable=False),
    sa.Column("at", Instant, nullable=False),
    sa.Column("answer", sa.JSON, nullable=False),
)
"""The latest of each rank. request: as in stacks. answer: contract.profile.ProfileAnswer."""

idempotency = sa.Table(
    "idempotency",
    metadata,
    sa.Column("owner", sa.String(120), primary_key=True),
    sa.Column("key", sa.String(255), primary_key=True),
    sa.Column("request_hash", sa.String(64), nullable=False),
    sa.Column("answer", sa.JSON, nullable=False),
    sa.Column("at", Instant, nullable=False),
    sa.Index(None, "at"),
)

tokens = sa.Table(
    "tokens",
    metadata,
    sa.Column("id", sa.String(20), primary_key=True),
    sa.Column("owner", sa.String(120), nullable=False),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("scopes", sa.JSON, nullable=False),
    sa.Column("created_at", Instant, nullable=False),
    sa.Column("expires_at", Instant),
    sa.Column("revoked_at", Instant),
)

secrets = sa.Table(
    "secrets",
    metadata,
    sa.Column("owner", sa.String(120), primary_key=True),
    sa.Column("name", sa.String(128), primary_key=True),
    sa.Column("sealed", sa.Text, nullable=False),
    sa.Column("updated_at", Instant, nullable=False),
)

audit = sa.Table(
    "audit",
    metadata,
    sa.Column("seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("at", Instant, nullable=False),
    sa.Column("actor_kind", sa.String(8), nullable=False, server_default="user"),
    sa.Column("owner", sa.String(120), nullable=False),
    sa.Column("token_id", sa.String(20)),
    sa.Column("action", sa.String(40), nullable=False),
    sa.Column("object", sa.String(400), nullable=False),
    sa.Column("before", sa.JSON(none_as_null=True)),
    sa.Column("after", sa.JSON(none_as_null=True)),
    sa.Column("outcome", sa.String(12), nullable=False, server_default="done"),
    sa.Column("detail", sa.Text, nullable=False, server_default=""),
    sa.Column("count", sa.Integer, nullable=False, server_default="1"),
    sa.Column("request_id", sa.String(40), nullable=False),
    sa.Index(None, "at"),
    sa.Index("ix_audit_owner", "owner", "seq"),
    sa.Index("ix_audit_action", "action", "seq"),
    sa.Index("ix_audit_object", "object", "seq"),
)
"""Written in the transaction of the change; refusals are counted and written a little later."""

usage = sa.Table(
    "usage",
    metadata,
    sa.Column("owner", sa.String(120), primary_key=True),
    sa.Column("cpu_seconds", sa.Float, nullable=False),
    sa.Column("gpu_seconds", sa.Float, nullable=False),
)
"""The usage of released attempts, stored separately because it outlives deleted jobs."""

removals = sa.Table(
    "removals",
    metadata,
    sa.Column("job_id", sa.String(40), primary_key=True),
    sa.Column("deleted_at", Instant, nullable=False),
)
"""Deleted jobs whose files are still on the storage."""

descriptions = sa.Table(
    "descriptions",
    metadata,
    sa.Column("job_id", sa.String(40), sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("attempt", sa.Integer, nullable=False),
)
"""Attempts whose facts are not in the MLflow run yet."""

storages = sa.Table(
    "storages",
    metadata,
    sa.Column("root", sa.String(400), primary_key=True),
    sa.Column("installation", sa.String(40), nullable=False),
    sa.Column("marked_at", Instant, nullable=False),
)
"""Storages with a marker file of this installation, so that one without it is not mistaken for an empty one."""

probe = sa.Table(
    "probe",
    metadata,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("filler", sa.Text, nullable=False),
)
"""Written and deleted to check that the database accepts writes."""

webhooks = sa.Table(
    "webhooks",
    metadata,
    sa.Column("receiver", sa.String(64), primary_key=True),
    sa.Column("position", sa.BigInteger, nullable=False),
)

leases = sa.Table(
    "leases",
    metadata,
    sa.Column("name", sa.String(40), primary_key=True),
    sa.Column("holder", sa.String(64), nullable=False),
    sa.Column("token", sa.BigInteger, nullable=False),
    sa.Column("expires_at", Instant, nullable=False),
)

studies = sa.Table(
    "studies",
    metadata,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("name", sa.String(120), nullable=False),
    sa.Column("project", sa.String(120), nullable=False),
    sa.Column("owner", sa.String(120), nullable=False),
    sa.Column("spec", sa.JSON, nullable=False),
    sa.Column("created_at", Instant, nullable=False),
    sa.Column("experiment_id", sa.String(64)),
    sa.Column("run_id", sa.String(64)),
    sa.Column("reported_at", Instant),
    sa.Column("failures", sa.Integer, nullable=False, server_default="0"),
    sa.Column("problem", sa.Text),
    sa.Index(None, "owner", "id"),
)

# job_id has no foreign key, because a study keeps its children when their jobs are deleted.
study_children = sa.Table(
    "study_children",
    metadata,
    sa.Column("study_id", sa.String(40), sa.ForeignKey("studies.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("job_id", sa.String(40), nullable=False),
    sa.Column("name", sa.String(120), nullable=False),
    sa.Column("point", sa.JSON, nullable=False),
    sa.Column("seed", sa.BigInteger, nullable=False),
    sa.Column("grouped_run", sa.String(64)),
    sa.UniqueConstraint("job_id"),
)
