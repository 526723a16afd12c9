"""A database that is full, locked, read-only, away, damaged or newer: 503 or one sentence, and nothing half done."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient

from syncnorm.service.api.app import create_app
from syncnorm.service.backend_errors import DatabaseUnavailableError
from syncnorm.service.store import Store
from syncnorm.service.store import database as module
from syncnorm.service.store.database import Database, UnusableDatabaseError
from syncnorm.service.store.database_faults import unavailability
from tests.helpers.paths import ROOT
from tests.helpers.service.api import SPEC, _no_lifespan, context_of
from tests.helpers.service.databases import fresh_sqlite, postgres_programs, postgres_server
from tests.helpers.service.world import World
from tests.service.api.test_api import problem

_ALTER = "ALTER DATABASE postgres"


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits long for a lock."""
    monkeypatch.setattr(module, "_PATIENCE_S", 0.5)
    monkeypatch.setattr(module, "_PROBE_S", 0.2)
    monkeypatch.setattr(module._sqlite_engine, "__defaults__", (0.5,))


@contextmanager
def service_on(database: Database, folder: Path) -> Iterator[TestClient]:
    world = World(folder, database)
    world.reconciler.tick()
    app = create_app(context_of(world, folder, False, {}))
    app.router.lifespan_context = _no_lifespan
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def submits(client: TestClient, expected: int) -> None:
    answer = client.post("/v1/jobs", json=SPEC)
    ready = client.get("/readyz").json()
    if expected == 201:
        assert (answer.status_code, ready["database"]) == (201, True), answer.text
    else:
        problem(answer, expected, "database_unavailable")
        assert answer.headers["Retry-After"] == "5"
        assert ready["database"] is False
        assert client.get("/healthz").status_code == 200


def test_locked_database_is_503_and_not_ready_until_it_is_free(tmp_path: Path, hasty: None) -> None:
    with fresh_sqlite(tmp_path) as database, service_on(database, tmp_path) as client:
        with closing(sqlite3.connect(tmp_path / "service.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            submits(client, 503)
            other.execute("ROLLBACK")
        submits(client, 201)


def test_full_database_is_503_and_not_ready_until_there_is_space(tmp_path: Path) -> None:
    with fresh_sqlite(tmp_path) as database, service_on(database, tmp_path) as client:
        for engine in (database._writer, database._prober):
            _limit(engine, None)
        while client.post("/v1/jobs", json=SPEC).status_code == 201:
            pass  # what fits into the last pages
        submits(client, 503)
        for engine in (database._writer, database._prober):
            _limit(engine, 10**6)
        submits(client, 201)


def _limit(engine: module.sa.Engine, pages: int | None) -> None:
    """How large the file may become, for one connection and those that follow; None: as large as it is."""
    engine.dispose()

    def limit(connection: sqlite3.Connection, _record: object) -> None:
        most = pages or connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count={most}")

    module.sa.event.listen(engine, "connect", limit)


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    programs = postgres_programs()
    if programs is None:
        pytest.skip("no PostgreSQL server is installed (Debian: apt-get install postgresql)")
    with postgres_server(programs) as url:
        yield url


@pytest.mark.parametrize(
    ("spoil", "mend"),
    [
        (
            "ALTER DATABASE postgres SET default_transaction_read_only = on",
            "ALTER DATABASE postgres RESET default_transaction_read_only",
        ),
        ("ALTER DATABASE postgres CONNECTION LIMIT 0", "ALTER DATABASE postgres CONNECTION LIMIT -1"),
        ("ALTER ROLE syncnorm NOLOGIN", "ALTER ROLE syncnorm LOGIN"),
        ("ALTER DATABASE postgres SET lock_timeout = 300", "ALTER DATABASE postgres RESET lock_timeout"),
    ],
    ids=["read-only", "no connections", "no right", "locked"],
)
def test_postgresql_that_can_not_be_written_to_is_503(postgres: str, tmp_path: Path, spoil: str, mend: str) -> None:
    with psycopg.connect(postgres, autocommit=True) as admin:
        admin.execute("DROP DATABASE IF EXISTS other")
        admin.execute("DROP ROLE IF EXISTS syncnorm")
        admin.execute("CREATE ROLE syncnorm LOGIN")
        admin.execute("CREATE DATABASE other OWNER syncnorm")
    url = postgres.replace("tests@", "syncnorm@").replace("/postgres", "/other")
    with closing(Database(url)) as database, psycopg.connect(postgres, autocommit=True) as admin:
        database.migrate()
        with service_on(database, tmp_path) as client, psycopg.connect(url) as holder:
            submits(client, 201)
            admin.execute(spoil.replace("postgres", "other"))
            if "lock_timeout" in spoil:
                holder.execute("LOCK TABLE jobs, probe IN ACCESS EXCLUSIVE MODE")
            _end_connections(admin, holder)
            submits(client, 503)
            holder.rollback()
            admin.execute(mend.replace("postgres", "other"))
            _end_connections(admin, holder)
            submits(client, 201)


def _end_connections(
    admin: psycopg.Connection[tuple[object, ...]], but: psycopg.Connection[tuple[object, ...]]
) -> None:
    admin.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'other' AND pid <> %s",
        (but.info.backend_pid,),
    )


def test_postgresql_that_is_away_is_503_and_recovers(tmp_path: Path) -> None:
    programs = postgres_programs()
    if programs is None:
        pytest.skip("no PostgreSQL server is installed (Debian: apt-get install postgresql)")
    with postgres_server(programs) as url, closing(Database(url)) as database:
        database.migrate()
        store = Store(database)
        assert store.installation.can_write()
        server = database
    with closing(Database(url)) as database:
        assert not Store(database).installation.can_write()
        with pytest.raises(DatabaseUnavailableError, match="The database can't be reached"), database.write():
            pass
    assert server is not None


def serve(home: Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SYNCNORM_")}
    environment |= {"SYNCNORM_HOME": str(home), "PYTHONPATH": str(ROOT)}
    # Nothing else is started for a database that can't be used: these addresses are never asked.
    environment |= {"SYNCNORM_RAY_ADDRESS": "http://127.0.0.1:9", "SYNCNORM_MLFLOW_URI": "http://127.0.0.1:9"}
    command = [sys.executable, "-m", "syncnorm.service.cli.main", "serve"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("damage", ["newer", "no database", "torn page"])
def test_database_that_can_not_be_used_is_refused_in_a_sentence(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "service.db"
    with fresh_sqlite(tmp_path):
        pass
    if damage == "newer":
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("UPDATE alembic_version SET version_num = '9999'")
            connection.commit()
    elif damage == "no database":
        path.write_bytes(b"this is no database" * 1000)
    else:
        content = bytearray(path.read_bytes())
        content[4096 * 3 : 4096 * 9] = b"\xff" * (4096 * 6)
        path.write_bytes(content)
    for left in ("-wal", "-shm"):
        Path(f"{path}{left}").unlink(missing_ok=True)

    done = serve(tmp_path)

    expected = {"newer": "form 9999", "no database": "is no SQLite database", "torn page": "damaged"}
    assert expected[damage] in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.returncode == 1


def test_newer_postgresql_is_refused_in_a_sentence(postgres: str) -> None:
    with closing(Database(postgres)) as database:
        database.migrate()
        with database.write() as connection:
            connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")

        with pytest.raises(UnusableDatabaseError, match="tables of a newer syncnorm"):
            database.migrate()

        with database.write() as connection:
            head = database.revisions()[1]
            connection.exec_driver_sql(f"UPDATE alembic_version SET version_num = '{head}'")


def test_full_disk_is_seen_by_writing(tmp_path: Path) -> None:
    """On a file system of its own, where the tests may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if os.getuid() != 0 or shutil.which("mount") is None or subprocess.run(mount, check=False).returncode != 0:
        pytest.skip("only root can mount a small file system")
    try:
        with fresh_sqlite(disk) as database:
            store = Store(database)
            before = store.installation.can_write()
            filler = os.open(disk / "filler", os.O_WRONLY | os.O_CREAT)
            with pytest.raises(OSError, match="No space left"):
                while os.write(filler, b"x" * 4096):
                    pass
            os.close(filler)
            full = store.installation.can_write()
            (disk / "filler").unlink()

            assert (before, full, store.installation.can_write()) == (True, False, True)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_refused_password_is_no_outage_to_wait_for() -> None:
    refusal = psycopg.OperationalError('FATAL:  password authentication failed for user "syncnorm"')

    why = unavailability(sa.exc.OperationalError("SELECT 1", {}, refusal))

    assert why is not None
    assert why.startswith("refuses the account of the service")
    assert "passfile" in why
    assert "try again in a moment" not in why
