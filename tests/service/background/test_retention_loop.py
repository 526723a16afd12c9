"""What is old or too much goes, in small batches, and those who read notice nothing but that it is gone."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from syncnorm.service.background.retention_loop import Retention
from syncnorm.service.jobs.actors import Actor, NewAuditEntry
from syncnorm.service.jobs.job import NewEvent
from syncnorm.service.settings import Settings
from syncnorm.service.store import Changes
from syncnorm.service.store import schema as t
from syncnorm.service.store.database import Database
from tests.helpers.service.api import api
from tests.helpers.service.worker import Worker, lines


class Counted:
    """Hears of what was removed."""

    def __init__(self) -> None:
        self.rows: dict[str, int] = {}

    def pruned(self, table: str, rows: int) -> None:
        self.rows[table] = self.rows.get(table, 0) + rows


def sweep(worker: Worker, **settings: int) -> Counted:
    counted, chosen = Counted(), replace(Settings(home=Path()), **settings)
    Retention(worker.world.store.retention, worker.world.store.now, chosen, counted).sweep(threading.Event(), rest_s=0)
    return counted


def end(worker: Worker) -> None:
    worker.send("exit", result={"fence": worker.attempt.fence, "outcome": "failed", "reason": "user_error"})
    worker.world.reconciler.tick()
    assert worker.job.is_terminal


def fill(worker: Worker, count: int) -> None:
    store, attempt = worker.world.store, worker.attempt
    for first in range(1, count, 1000):
        store.reports.add_lines(attempt.id, attempt.fence, lines(first, 1000, "x" * 1000))


def test_log_lines_go_some_time_after_the_end_of_their_job(worker: Worker) -> None:
    fill(worker, 3000)
    early = sweep(worker)
    end(worker)
    worker.world.clock.advance(29 * 86_400)
    still = sweep(worker)
    worker.world.clock.advance(2 * 86_400)
    late = sweep(worker)

    page = worker.get("/logs")["items"]
    assert (early.rows.get("log_lines"), still.rows.get("log_lines")) == (None, None)
    assert late.rows["log_lines"] == 3000
    assert [line["text"].split(" earlier")[0] for line in page] == ["… 3,000"]
    assert worker.world.store.retention.kept_lines() == (0, 0)


def test_all_logs_together_have_a_size(worker: Worker) -> None:
    fill(worker, 5000)
    end(worker)

    sweep(worker, log_mb_total=2)

    _, characters = worker.world.store.retention.kept_lines()
    assert 1_000_000 < characters <= 2 * 2**20


def test_a_job_that_runs_gives_lines_too_when_nothing_else_is_left(worker: Worker) -> None:
    fill(worker, 5000)

    sweep(worker, log_mb_total=2)

    assert worker.world.store.retention.kept_lines()[1] <= 2 * 2**20
    assert "earlier lines" in worker.get("/logs")["items"][0]["text"]


def test_events_of_workers_go_and_what_the_service_said_stays(worker: Worker) -> None:
    for kind in ("phase", "non_finite", "mine"):
        worker.send("events", kind=kind, message="m")
    worker.send("progress", epoch=1, epochs=2, step=5, steps=10, metrics={})
    worker.send("checkpoints", path="p", step=5, epoch=1, digest="d", size_bytes=1)
    end(worker)
    before = [event["kind"] for event in worker.get("/events")["items"]]
    worker.world.clock.advance(91 * 86_400)
    counted = sweep(worker)
    again = sweep(worker)

    after = [event["kind"] for event in worker.get("/events")["items"]]
    assert set(before) - set(after) == {"phase", "non_finite", "user.mine", "progress", "checkpoint"}
    assert after[-1] == "failed"
    assert (counted.rows["events"], again.rows.get("events", 0)) == (5, 0)


def test_follower_goes_on_behind_events_that_are_gone(worker: Worker) -> None:
    worker.send("events", kind="phase", message="m")
    last = worker.get("/events")["items"][-1]["seq"]
    end(worker)
    worker.world.clock.advance(91 * 86_400)
    sweep(worker)

    # No look for news of other processes, which would still be reading when this test has closed its database.
    worker.context.notifier._changes_since = lambda _heads: Changes((0, 0), set())
    headers = {"Accept": "text/event-stream", "Last-Event-ID": str(last)}
    text = worker.client.get(f"/v1/jobs/{worker.job_id}/events", headers=headers).text
    assert "failed" in text
    assert text.count("event: end") == 1


def test_job_that_was_retried_is_looked_through_again(worker: Worker) -> None:
    worker.send("events", kind="phase", message="m")
    end(worker)
    worker.world.clock.advance(91 * 86_400)
    sweep(worker)
    worker.world.store.history.add_event(worker.job_id, NewEvent("phase", "of another attempt"))
    with worker.world.database.write() as c:
        later = worker.world.clock() + timedelta(days=1)
        c.execute(sa.update(t.jobs).where(t.jobs.c.id == worker.job_id).values(finished_at=later))
    worker.world.clock.advance(100 * 86_400)

    assert sweep(worker).rows["events"] == 1


def test_audit_and_idempotency_keys_go_by_age(worker: Worker) -> None:
    store, clock = worker.world.store, worker.world.clock
    entries = [NewAuditEntry(Actor("user", "ann"), "job.submit", f"job_{n}") for n in range(2500)]
    store.audit.add(entries)
    with store._db.write() as c:
        rows = [{"owner": "ann", "key": str(n), "request_hash": "0", "answer": {}, "at": clock()} for n in range(1500)]
        c.execute(sa.insert(t.idempotency), rows)
    fresh = sweep(worker)
    clock.advance(8 * 86_400)
    week = sweep(worker)
    clock.advance(360 * 86_400)
    year = sweep(worker)

    assert fresh.rows.get("audit", 0) == fresh.rows.get("idempotency", 0) == 0
    assert (week.rows["idempotency"], week.rows.get("audit", 0)) == (1500, 0)
    assert year.rows["audit"] == 2500


def test_part_that_fails_does_not_keep_the_others_and_is_raised_in_the_end(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker.world.store.audit.add([NewAuditEntry(Actor("user", "ann"), "job.submit", "job_1")])
    worker.world.clock.advance(400 * 86_400)

    def failing(*_: object) -> Iterator[int]:
        raise RuntimeError("a defect")

    monkeypatch.setattr(Retention, "_lines", failing)

    store, counted = worker.world.store, Counted()
    with pytest.raises(RuntimeError, match="a defect"):
        Retention(store.retention, store.now, Settings(home=Path()), counted).sweep(threading.Event(), rest_s=0)

    assert counted.rows["audit"] == 1


def test_file_of_the_database_shrinks(tmp_path: Path) -> None:
    with closing(Database(f"sqlite:///{tmp_path}/service.db", synchronous="OFF")) as made:
        made.migrate()
        worker = Worker(made, tmp_path)
        fill(worker, 20_000)
        end(worker)
        full = worker.world.store.retention.size_bytes()
        worker.world.clock.advance(31 * 86_400)
        sweep(worker)

        assert worker.world.store.retention.size_bytes() < full / 4
    with closing(sqlite3.connect(tmp_path / "service.db")) as file:
        assert file.execute("PRAGMA auto_vacuum").fetchone() == (2,)


def test_metrics_tell_the_size_and_what_was_removed(tmp_path: Path) -> None:
    with api(tmp_path) as (client, world):
        del world
        text = client.get("/metrics").text

    assert "syncnorm_database_bytes " in text
    assert "syncnorm_log_lines 0.0" in text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SYNCNORM_LOG_RETENTION_DAYS", "0"),
        ("SYNCNORM_AUDIT_RETENTION_DAYS", "99999"),
        ("SYNCNORM_LOG_MB_PER_JOB", "9" * 5000),
        ("SYNCNORM_MAX_QUEUED", "1" * 30),
    ],
)
def test_setting_without_sense_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=name):
        Settings.from_environment({name: value})
