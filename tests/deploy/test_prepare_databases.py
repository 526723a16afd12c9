"""deploy/prepare_databases.py on a PostgreSQL of its own: no engine needed."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from tests.helpers.deploy.composition import ROOT
from tests.helpers.service.databases import postgres_programs, postgres_server

pytestmark = pytest.mark.timeout(300)

SECRETS = {
    "postgres_password": "p",
    "syncnorm_pgpass": "*:*:*:syncnorm:s",
    "mlflow_pgpass": "*:*:*:mlflow:m",
    "mlflow_admin_password": "admin-password-1",
    "mlflow_service_password": "service-password-1",
}


@dataclass(frozen=True)
class Server:
    url: str
    secrets: Path

    def prepare(self, **changes: str) -> subprocess.CompletedProcess[str]:
        port = str(urlsplit(self.url).port)
        places = {"SECRETS": str(self.secrets), "POSTGRES_HOST": "127.0.0.1", "PGPORT": port}
        command = [sys.executable, str(ROOT / "deploy" / "prepare_databases.py")]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **places, **changes}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)

    def sql(self, database: str, query: str) -> None:
        with psycopg.connect(self.url.replace("/postgres", f"/{database}"), autocommit=True) as connection:
            connection.execute(query)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With all databases as this version needs them."""
    programs = postgres_programs()
    if programs is None:
        pytest.skip("no PostgreSQL server is installed (Debian: apt-get install postgresql)")
    secrets = tmp_path_factory.mktemp("secrets")
    for name, content in SECRETS.items():
        (secrets / name).write_text(content)
        (secrets / name).chmod(0o400)
    with postgres_server(programs) as url:
        made = Server(url, secrets)
        made.sql("postgres", "CREATE ROLE postgres SUPERUSER LOGIN")
        done = made.prepare()
        assert "databases ready" in done.stdout, done.stderr
        yield made


def test_a_second_time_changes_nothing(server: Server) -> None:
    assert "databases ready" in server.prepare().stdout


@pytest.mark.parametrize(
    ("database", "table", "sentence"),
    [
        ("syncnorm", "alembic_version", "syncnorm: the database has tables of a newer syncnorm (form 9999;"),
        ("mlflow", "alembic_version", "mlflow: the database has tables that this MLflow does not know ("),
        ("mlflow_auth", "alembic_version_auth", "mlflow_auth: the database has tables that this MLflow does not know"),
    ],
)
def test_tables_of_a_newer_version_are_refused_in_one_sentence(
    server: Server, database: str, table: str, sentence: str
) -> None:
    server.sql(database, f"CREATE TABLE kept AS SELECT * FROM {table}")
    server.sql(database, f"UPDATE {table} SET version_num = '9999'")

    try:
        done = server.prepare()
    finally:
        server.sql(database, f"DELETE FROM {table}; INSERT INTO {table} SELECT * FROM kept; DROP TABLE kept")

    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(sentence)
    assert "Traceback" not in done.stderr
    assert "restore the backup from before the upgrade" in done.stderr


def test_database_that_does_not_answer_is_told_in_one_sentence(server: Server) -> None:
    done = server.prepare(PGPORT="1")

    assert done.returncode == 1
    assert done.stderr.startswith("can't use PostgreSQL on 127.0.0.1: ")
    assert "Traceback" not in done.stderr


def test_refused_password_is_told_what_to_change() -> None:
    module = runpy.run_path(str(ROOT / "deploy" / "prepare_databases.py"))
    refusal = psycopg.OperationalError('FATAL:  password authentication failed for user "postgres"')

    assert "Put the old file back" in module["remedy"](refusal)
    assert module["remedy"](psycopg.OperationalError("connection refused")) == ""
