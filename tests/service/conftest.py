"""Real service processes on one real Ray and one real MLflow for all tests here; drivers are the stand-in."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import pytest
import sqlalchemy as sa

from syncnorm.service.client.client import Client
from syncnorm.service.local.free_ports import free_port
from syncnorm.service.local.programs import local_mlflow, local_ray
from syncnorm.service.store import schema
from syncnorm.service.store.database import Database
from tests.helpers.paths import ROOT
from tests.helpers.service.databases import fresh_sqlite, postgres_programs, postgres_server
from tests.helpers.service.worker import Worker

T = TypeVar("T")
STANDIN = ROOT / "tests" / "helpers" / "service" / "standin.py"


class RunningService:
    """The service as a process of its own, on a state folder."""

    def __init__(
        self,
        home: Path,
        environment: dict[str, str] | None = None,
        settings: dict[str, float] | None = None,
        *,
        trains: bool = False,
        driver: Path = STANDIN,
    ) -> None:
        """settings: times for which there is no variable. trains: with the real driver in place of a stand-in."""
        self.home = home
        self._settings = settings or {}
        self._environment = environment or {}
        self._entrypoint = None if trains else f"{shlex.quote(sys.executable)} {shlex.quote(str(driver))}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Client:
        """Start it, and wait until it can run jobs."""
        (self.home / "service.json").unlink(missing_ok=True)  # left behind by one that was killed
        self.launch()
        return self.wait_until_ready()

    def launch(self) -> None:
        code = (
            "from dataclasses import replace; from syncnorm.service.server import serve; "
            "from syncnorm.service.settings import Settings; "
            f"settings = replace(Settings.from_environment(), **{self._settings}); "
            f"serve(settings, lambda url, context: None, entrypoint={self._entrypoint!r})"
        )
        environment = {key: value for key, value in os.environ.items() if not key.startswith("SYNCNORM_")}
        environment |= {"SYNCNORM_HOME": str(self.home), "PYTHONPATH": str(ROOT), "SYNCNORM_PORT": str(free_port())}
        environment |= self._environment
        with (self.home / "out").open("ab") as out:
            self.process = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=out, stderr=out)

    def wait_until_ready(self, timeout_s: float = 120) -> Client:
        address = self.home / "service.json"

        def ready() -> Client | None:
            assert self.process is not None and self.process.poll() is None, (self.home / "out").read_text()
            if not address.exists():
                return None
            token = self.home / "admin.token"
            client = Client(
                json.loads(address.read_text())["url"], token.read_text().strip() if token.exists() else None
            )
            if client.is_ready():
                return client
            client.close()
            return None

        return eventually(ready, timeout_s)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(60)


def eventually(look: Callable[[], T | None], timeout_s: float = 60) -> T:
    """The first true answer of `look`; fails when it does not come in time."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if answer := look():
            return answer
        time.sleep(0.1)
    pytest.fail(f"not within {timeout_s:g} s")


@pytest.fixture(scope="session")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A Ray and an MLflow for all tests here; the variables under which a service finds them."""
    home = tmp_path_factory.mktemp("outside")
    with local_ray(home) as (_, ray), local_mlflow(home, preferred_port=0) as (_, mlflow_uri):
        yield {
            "SYNCNORM_RAY_ADDRESS": ray.url,
            "SYNCNORM_MLFLOW_URI": mlflow_uri,
            "RAY_AUTH_TOKEN_PATH": str(home / "ray.token"),
        }


@pytest.fixture(scope="session")
def service(outside: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    running = RunningService(tmp_path_factory.mktemp("home"), outside)
    try:
        with running.start() as client:
            yield client
    finally:
        running.stop()


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str | None]:
    """Of a database of the newest form; None where no server is installed."""
    programs = postgres_programs()
    if programs is None:
        yield None
        return
    with postgres_server(programs) as url:
        with closing(Database(url)) as database:
            database.migrate()
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def either_database(request: pytest.FixtureRequest, tmp_path: Path, postgres_url: str | None) -> Iterator[Database]:
    """An empty one of either kind."""
    if request.param == "sqlite":
        with fresh_sqlite(tmp_path) as made:
            yield made
        return
    if postgres_url is None:
        pytest.skip("no PostgreSQL server is installed (Debian: apt-get install postgresql)")
    with closing(Database(postgres_url)) as made:
        with made.write() as c:
            c.execute(sa.text(f"TRUNCATE {', '.join(table.name for table in schema.metadata.sorted_tables)} CASCADE"))
        yield made
        pool: Any = made._reader.pool
        eventually(lambda: pool.checkedout() == 0)  # a thread of a request that is over may still read


@pytest.fixture
def worker(either_database: Database, tmp_path: Path) -> Worker:
    return Worker(either_database, tmp_path)
