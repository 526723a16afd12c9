"""What a request costs: submits with a token, an idempotency key and an event, and lists over many jobs.

Peer: `/healthz` of the same server in the same run, which is the framework alone. The server is a process of its own
on SQLite with synchronous=FULL; the clients are threads with one connection each.
"""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import httpx
import sqlalchemy as sa

from benchmarks.harness import Row, Table
from service import schema
from service.database import Database
from service.jobs import Job, JobState, new_job_id
from service.scheduler import Policy, in_lines, schedule
from service.submit import new_job
from trainer.plan import NodeCapacity
from trainer.spec_reader import read_spec

CLIENTS = 4
ROUNDS = 5
REQUESTS = 60
"""Of each client in each round."""
JOBS = int(os.environ.get("BENCH_JOBS", "100000"))
SPEC = {"name": "job", "model": {"name": "resnet"}, "data": {"name": "digits", "batch_size": 32}}
_SERVER = """
import socket, sys, uvicorn
from contextlib import ExitStack
from service.app import create_app
from service.embedded import LocalRay
from service.runtime import make_context
from service.settings import Settings
settings = Settings.from_environment()
with ExitStack() as stack, socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
    listener.bind(("127.0.0.1", int(sys.argv[1])))
    listener.listen(2048)
    nobody = "http://127.0.0.1:9"
    context = make_context(settings, LocalRay(nobody, "", ""), nobody, "http://127.0.0.1:" + sys.argv[1], stack)
    config = uvicorn.Config(create_app(context), log_config=None, access_log=False)
    uvicorn.Server(config).run(sockets=[listener])
"""


def run() -> Table:
    with _server() as (url, token, folder):
        _fill(folder, JOBS)
        kinds: dict[str, Callable[[httpx.Client], httpx.Response]] = {
            "healthz": lambda client: client.get("/healthz"),
            "submit": lambda client: client.post("/v1/jobs", json=SPEC, headers={"Idempotency-Key": uuid.uuid4().hex}),
            "list 50": lambda client: client.get("/v1/jobs"),
            "list by label": lambda client: client.get("/v1/jobs", params={"label": "n:7"}),
        }
        times = {kind: [] for kind in kinds}
        for _ in range(ROUNDS):
            for kind, call in kinds.items():
                times[kind].append(_round(url, token, call))
    decisions = [_decide() for _ in range(ROUNDS)]
    rows = [_row(kind, rounds, times["healthz"]) for kind, rounds in times.items()]
    for kind, rounds in times.items():
        each = sorted(one for one_round in rounds for one in one_round[1])
        rate = max(CLIENTS * REQUESTS / one_round[0] for one_round in rounds)
        p95_ms = 1000 * each[int(0.95 * len(each))]
        print(f"{kind:<14}{rate:8.0f} requests/s   p95 {p95_ms:6.1f} ms")
    print(f"scheduler, 10,000 queued: {1000 * min(decisions):.1f} ms")
    return Table(name="api", peer="healthz", rows=rows, workers=CLIENTS)


Round = tuple[float, list[float]]
"""Seconds of the whole round, and of each request."""


def _row(kind: str, rounds: list[Round], peer: list[Round]) -> Row:
    seconds, against = [one[0] for one in rounds], [one[0] for one in peer]
    return Row(
        setting=f"{JOBS} jobs",
        competitor=kind,
        minimum_s=min(seconds) / (CLIENTS * REQUESTS),
        median_s=statistics.median(seconds) / (CLIENTS * REQUESTS),
        ratio_of_minima=min(seconds) / min(against),
        ratio_of_medians=statistics.median(seconds) / statistics.median(against),
    )


def _round(url: str, token: str, call: Callable[[httpx.Client], httpx.Response]) -> Round:
    each: list[float] = []
    barrier = threading.Barrier(CLIENTS + 1)

    def client() -> None:
        with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=60) as http:
            http.get("/healthz")
            barrier.wait()
            for _ in range(REQUESTS):
                began = time.perf_counter()
                answer = call(http)
                each.append(time.perf_counter() - began)
                assert answer.is_success, answer.text

    threads = [threading.Thread(target=client) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    barrier.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began, each


def _decide() -> float:
    """Seconds for one plan with 10,000 waiting jobs of 50 owners."""
    template = new_job(read_spec(SPEC), "ann", datetime.now(UTC))
    queue: list[Job] = [replace(template, id=f"j{i}", owner=f"o{i % 50}", workers=1 + i % 4) for i in range(10_000)]
    nodes = [NodeCapacity(f"n{i}", 8.0, 0.0, 8.0, 0.0) for i in range(8)]
    lines = in_lines(queue, Policy())
    began = time.perf_counter()
    schedule(lines, [], nodes, datetime.now(UTC), Policy())
    return time.perf_counter() - began


@contextmanager
def _server() -> Iterator[tuple[str, str, str]]:
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
        probe.close()
        token = "admin-token-of-the-benchmark-" + uuid.uuid4().hex
        file = Path(folder) / "token"
        file.write_text(token)
        environment = os.environ | {
            "SYNCNORM_HOME": folder,
            "SYNCNORM_AUTH": "on",
            "SYNCNORM_ADMIN_TOKEN_FILE": str(file),
            "SYNCNORM_RAY_ADDRESS": "http://127.0.0.1:9",
            "SYNCNORM_MAX_QUEUED": "10000000",
        }
        server = subprocess.Popen([sys.executable, "-c", _SERVER, str(port)], env=environment)
        try:
            url = f"http://127.0.0.1:{port}"
            while not _answers(url):
                assert server.poll() is None
            yield url, token, folder
        finally:
            server.terminate()
            server.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz").is_success
    except httpx.TransportError:
        time.sleep(0.05)
        return False


def _fill(folder: str, count: int) -> None:
    """Finished jobs straight into the tables, for lists to look through."""
    template = new_job(read_spec(SPEC), "admin", datetime.now(UTC))
    with closing(Database(f"sqlite:///{folder}/service.db", synchronous="OFF")) as database:
        for start in range(0, count, 1000):
            jobs = [
                replace(template, id=new_job_id(), state=JobState.SUCCEEDED, labels={"n": str(number % 1000)})
                for number in range(start, min(start + 1000, count))
            ]
            with database.write() as connection:
                connection.execute(sa.insert(schema.jobs), [vars(job) for job in jobs])
                labels = [{"job_id": job.id, "name": "n", "value": job.labels["n"]} for job in jobs]
                connection.execute(sa.insert(schema.labels), labels)
