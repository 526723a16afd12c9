"""Tables of every earlier form become today's, with every row that was in them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.script import ScriptDirectory

from syncnorm.service.jobs.admission import new_job
from syncnorm.service.jobs.job import Attempt, Job, JobState, NewEvent, new_fence
from syncnorm.service.store import Store, schema
from syncnorm.service.store.database import Database, _alembic
from syncnorm.trainer.contract.protocol import CheckpointFact, LogLine
from syncnorm.trainer.contract.spec_reader import read_spec
from tests.helpers.fakes import Clock
from tests.helpers.service.databases import postgres_programs, postgres_server

SPEC = {"name": "old", "labels": {"a": "b"}, "model": {"name": "resnet"}, "data": {"name": "digits", "batch_size": 32}}
FORMS = [script.revision for script in reversed(list(ScriptDirectory.from_config(_alembic()).walk_revisions()))]

Rows = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a database."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path_factory.mktemp('migrations')}/service.db"
        return
    programs: Path | None = postgres_programs()
    if programs is None:
        pytest.skip("no PostgreSQL server is installed (Debian: apt-get install postgresql)")
    with postgres_server(programs) as url:
        yield url


@pytest.fixture
def database(server: str) -> Iterator[Database]:
    """Without any table."""
    with closing(Database(server, synchronous="OFF")) as made:
        with made.write() as connection:
            found = sa.MetaData()
            found.reflect(connection)
            found.drop_all(connection)
        yield made


def fill(store: Store, clock: Clock) -> Job:
    """A job that trains, with something in every table that there was from the beginning."""
    job = new_job(read_spec(SPEC), "ann", clock())
    store.jobs.add(job, NewEvent("submitted", "Something."))
    attempt = Attempt(f"{job.id}-1", job.id, 1, new_fence(), clock(), clock())
    moved = store.jobs.move(
        job,
        JobState.STARTING,
        {"attempt": 1, "world_size": 1},
        event=NewEvent("starting", "Else."),
        new_attempt=attempt,
    )
    assert moved is not None
    store.reports.add_lines(attempt.id, attempt.fence, [LogLine(rank=0, seq=1, at="now", level="INFO", text="a line")])
    store.reports.add_checkpoint(
        attempt.id, CheckpointFact(fence=attempt.fence, path="p", step=5, epoch=0, digest="d", size_bytes=1)
    )
    store.leases.take("somebody", 30)
    return moved


def rows_of(database: Database) -> Rows:
    with database.read() as connection:
        return {
            table.name: [dict(row) for row in connection.execute(sa.select(table)).mappings()]
            for table in schema.metadata.sorted_tables
        }


def upgrade(database: Database, form: str) -> None:
    config = _alembic()
    with database._writer.connect() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, form)
        connection.commit()


def put(database: Database, rows: Rows) -> Rows:
    """What of the rows the tables there are have a column for."""
    stored: Rows = {}
    with database.write() as connection:
        inspector = sa.inspect(connection)
        for table in schema.metadata.sorted_tables:
            if not inspector.has_table(table.name):
                continue
            names = {column["name"] for column in inspector.get_columns(table.name)}
            old = sa.table(table.name, *(sa.column(c.name, c.type) for c in table.columns if c.name in names))
            stored[table.name] = [{key: row[key] for key in row if key in names} for row in rows[table.name]]
            if stored[table.name]:
                connection.execute(sa.insert(old), stored[table.name])
    return stored


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, Rows]:
    """The job, and all rows of today's tables with it."""
    with closing(Database(f"sqlite:///{tmp_path_factory.mktemp('filled')}/service.db")) as database:
        database.migrate()
        job = fill(Store(database, clock := Clock()), clock)
        return job, rows_of(database)


@pytest.mark.parametrize("form", FORMS)
def test_every_row_is_there_after_the_upgrade(database: Database, filled: tuple[Job, Rows], form: str) -> None:
    job, rows = filled
    upgrade(database, form)
    stored = put(database, rows)

    database.migrate()

    after = rows_of(database)
    assert sum(map(len, stored.values())) > 5
    for name, old in stored.items():
        assert [{key: row[key] for key in old[0]} for row in after[name]] == old if old else not after[name], name
    store = Store(database, Clock())
    assert store.jobs.get(job.id) == job
    assert len(store.attempts.of_job(job.id)) == len(store.history.checkpoints(job.id)) == 1
    assert database.revisions()[0] == FORMS[-1]


def test_audit_and_events_of_before_stay_readable(database: Database) -> None:
    clock = Clock()
    upgrade(database, "0012")
    with database.write() as connection:
        old = sa.table("audit", *(sa.column(name) for name in ("at", "who", "method", "path", "status", "request_id")))
        for status in (201, 403, 500):
            row = {"at": "2026-01-01T00:00:00.000000Z", "who": "ann", "method": "POST", "path": "/v1/jobs"}
            connection.execute(sa.insert(old).values(**row, status=status, request_id=f"req_{status}"))

    database.migrate()

    found = Store(database, clock).audit.find()
    assert [(one.owner, one.action, one.object, one.outcome) for one in found] == [
        ("ann", "POST", "/v1/jobs", "failed"),
        ("ann", "POST", "/v1/jobs", "refused"),
        ("ann", "POST", "/v1/jobs", "done"),
    ]
    assert [(one.token_id, one.before, one.after, one.count) for one in found] == [(None, None, None, 1)] * 3
    config = _alembic()
    with database._writer.connect() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "0012")
        connection.commit()
        statuses = connection.execute(sa.text("SELECT who, method, status FROM audit")).all()
    assert statuses == [("ann", "POST", 200)] * 3
