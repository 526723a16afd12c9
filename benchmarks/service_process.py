"""A service as a process of its own, on SQLite with synchronous=FULL, with many finished jobs; for benchmarks."""

from __future__ import annotations

import http.client
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import httpx
import psutil
import sqlalchemy as sa

from syncnorm.service.jobs.admission import new_job
from syncnorm.service.jobs.job import JobState, new_job_id
from syncnorm.service.store import schema
from syncnorm.service.store.database import Database
from syncnorm.service.store.statements import row_of
from syncnorm.trainer.contract.spec_reader import read_spec

SPEC = {"name": "job", "model": {"name": "resnet"}, "data": {"name": "digits", "batch_size": 32}}
ADMIN = "admin-token-of-the-benchmark-0123456789"
_SERVER = """
import sys, uvicorn
from contextlib import ExitStack
from dataclasses import replace
from syncnorm.service.api.app import create_app
from syncnorm.service.integrations.ray_jobs import ENTRYPOINTS
from syncnorm.service.local.programs import LocalRay
from syncnorm.service.server import listen, make_context
from syncnorm.service.settings import Settings
settings = replace(Settings.from_environment(), port=int(sys.argv[1]))
with ExitStack() as stack, listen(settings) as listener:
    nobody = "http://127.0.0.1:9"
    ray = LocalRay(nobody, "", ENTRYPOINTS)
    context = make_context(settings, ray, nobody, "http://127.0.0.1:" + sys.argv[1], stack)
    config = uvicorn.Config(create_app(context), log_config=None, access_log=False, timeout_graceful_shutdown=2)
    uvicorn.Server(config).run(sockets=[listener])
"""


@dataclass(frozen=True)
class Server:
    """token: of an ordinary user with the scopes read and submit."""

    port: int
    token: str
    process: psutil.Process

    def cpu_s(self) -> float:
        used = self.process.cpu_times()
        return used.user + used.system

    def connect(self) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.connect()
        return connection

    def headers(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}", **(more or {})}


@contextmanager
def service_process(jobs: int) -> Iterator[Server]:
    """A server with that many finished jobs of its user. No Ray and no MLflow: nothing starts."""
    _allow_many_files()
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
        probe.close()
        file = Path(folder) / "token"
        file.write_text(ADMIN)
        environment = os.environ | {
            "SYNCNORM_HOME": folder,
            "SYNCNORM_AUTH": "on",
            "SYNCNORM_ADMIN_TOKEN_FILE": str(file),
            "SYNCNORM_RAY_ADDRESS": "http://127.0.0.1:9",
            "SYNCNORM_MAX_QUEUED": "10000000",
        }
        process = subprocess.Popen(
            [sys.executable, "-c", _SERVER, str(port)], env=environment, stderr=subprocess.DEVNULL
        )
        try:
            url = f"http://127.0.0.1:{port}"
            while not _answers(url):
                assert process.poll() is None, "the server did not start"
            body = {"owner": "ann", "scopes": ["read", "submit"]}
            made = httpx.post(f"{url}/v1/tokens", json=body, headers={"Authorization": f"Bearer {ADMIN}"})
            _fill(folder, jobs)
            yield Server(port, made.raise_for_status().json()["token"], psutil.Process(process.pid))
        finally:
            process.terminate()
            process.wait()


def _allow_many_files() -> None:
    """As many as the system lets this process and its children have open: each connection is one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz").is_success
    except httpx.TransportError:
        time.sleep(0.05)
        return False


def _fill(folder: str, count: int) -> None:
    """Finished jobs straight into the tables, for lists to look through."""
    template = new_job(read_spec(SPEC), "ann", datetime.now(UTC))
    with closing(Database(f"sqlite:///{folder}/service.db", synchronous="OFF")) as database:
        for start in range(0, count, 1000):
            jobs = [
                replace(template, id=new_job_id(), state=JobState.SUCCEEDED, labels={"n": str(number % 1000)})
                for number in range(start, min(start + 1000, count))
            ]
            with database.write() as connection:
                connection.execute(sa.insert(schema.jobs), [row_of(job) for job in jobs])
                labels = [{"job_id": job.id, "name": "n", "value": job.labels["n"]} for job in jobs]
                connection.execute(sa.insert(schema.labels), labels)
