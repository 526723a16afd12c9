"""What a request costs: submits with a token, an idempotency key and an event; lists over many jobs; a thousand
followers; a plan for a long queue.

Peer: `/healthz` of the same server in the same run, which is the framework alone. Clients are threads of this process
with one connection each, so they take their part of the machine as well; the CPU time of the server is told beside.
"""

from __future__ import annotations

import json
import os
import resource
import selectors
import statistics
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from http.client import HTTPConnection

from benchmarks.harness import Row, Table
from benchmarks.service_process import SPEC, Server, service_process
from service.jobs import Job
from service.scheduler import Policy, in_lines, schedule
from service.submit import new_job
from trainer.plan import NodeCapacity
from trainer.spec_reader import read_spec

WRITERS, READERS = 8, 4
"""Connections that send at the same time."""
ROUNDS = 5
REQUESTS = 60
"""Of each client in each round."""
FOLLOWERS = 1000
JOBS = int(os.environ.get("BENCH_JOBS", "100000"))

Call = Callable[[HTTPConnection, Server], None]


@dataclass(frozen=True)
class Round:
    """wall_s and cpu_s of all requests together (cpu_s: the server's), and the time each took."""

    wall_s: float
    cpu_s: float
    each_s: list[float]


def run() -> Table:
    kinds: dict[str, tuple[int, Call]] = {
        "healthz": (READERS, _get("/healthz")),
        "submit": (WRITERS, _submit),
        "list 50": (READERS, _get("/v1/jobs")),
        "list by label": (READERS, _get("/v1/jobs?label=n:7")),
        "list by state": (READERS, _get("/v1/jobs?state=queued")),
    }
    with service_process(JOBS) as server:
        rounds: dict[str, list[Round]] = {kind: [] for kind in kinds}
        for _ in range(ROUNDS):
            for kind, (clients, call) in kinds.items():
                rounds[kind].append(_round(server, clients, call))
        for kind, measured in rounds.items():
            _tell(kind, measured)
        _follow(server)
    decisions = [_decide() for _ in range(ROUNDS)]
    print(f"plan with 10,000 queued: {1000 * min(decisions):.1f} ms, median {1000 * statistics.median(decisions):.1f}")
    rows = [_row(kind, measured, rounds["healthz"]) for kind, measured in rounds.items()]
    return Table(name="api", peer="healthz", rows=rows, workers=WRITERS)


def _get(path: str) -> Call:
    return lambda connection, server: _send(connection, "GET", path, None, server.headers())


def _submit(connection: HTTPConnection, server: Server) -> None:
    headers = server.headers({"Idempotency-Key": uuid.uuid4().hex, "Content-Type": "application/json"})
    _send(connection, "POST", "/v1/jobs", json.dumps(SPEC), headers)


def _send(connection: HTTPConnection, method: str, path: str, body: str | None, headers: dict[str, str]) -> None:
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    text = answer.read()
    assert answer.status in (200, 201), text


def _round(server: Server, clients: int, call: Call) -> Round:
    each: list[float] = []
    barrier = threading.Barrier(clients + 1)

    def client() -> None:
        connection = server.connect()
        barrier.wait()
        for _ in range(REQUESTS):
            began = time.perf_counter()
            call(connection, server)
            each.append(time.perf_counter() - began)
        connection.close()

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    barrier.wait()
    began, cpu_s = time.perf_counter(), server.cpu_s()
    for thread in threads:
        thread.join()
    return Round(time.perf_counter() - began, server.cpu_s() - cpu_s, each)


def _tell(kind: str, rounds: list[Round]) -> None:
    rates = [len(one.each_s) / one.wall_s for one in rounds]
    p95s = [1000 * sorted(one.each_s)[int(0.95 * len(one.each_s))] for one in rounds]
    cpu_ms = 1000 * min(one.cpu_s / len(one.each_s) for one in rounds)
    print(
        f"{kind:<14} best {max(rates):6.0f}/s  median {statistics.median(rates):6.0f}/s   "
        f"p95 best {min(p95s):5.1f} ms  median {statistics.median(p95s):5.1f} ms   server CPU {cpu_ms:.2f} ms"
    )


def _row(kind: str, rounds: list[Round], peer: list[Round]) -> Row:
    seconds, against = ([one.wall_s / len(one.each_s) for one in these] for these in (rounds, peer))
    return Row(
        setting=f"{JOBS} jobs",
        competitor=kind,
        minimum_s=min(seconds),
        median_s=statistics.median(seconds),
        ratio_of_minima=min(seconds) / min(against),
        ratio_of_medians=statistics.median(seconds) / statistics.median(against),
    )


def _follow(server: Server) -> None:
    """How long a thousand followers of one job wait for an event, and what they cost while nothing happens."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    connection = server.connect()
    headers = server.headers({"Content-Type": "application/json"})
    connection.request("POST", "/v1/jobs", json.dumps(SPEC), headers)
    job_id = json.loads(connection.getresponse().read())["id"]
    with selectors.DefaultSelector() as selector:
        for _ in range(FOLLOWERS):
            follower = server.connect()
            follower.request(
                "GET", f"/v1/jobs/{job_id}/events", headers=server.headers({"Accept": "text/event-stream"})
            )
            selector.register(follower.sock, selectors.EVENT_READ)
        _hear(selector, b'"kind":"queued"')
        began, cpu_s = time.perf_counter(), server.cpu_s()
        time.sleep(5)
        idle = (server.cpu_s() - cpu_s) / (time.perf_counter() - began)
        began = time.perf_counter()
        with closing(server.connect()) as caller:
            _send_cancel(caller, server, job_id)
        heard_s = _hear(selector, b'"kind":"cancel')
        for key in list(selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
    print(
        f"{FOLLOWERS} followers: {100 * idle:.0f} % of a core while nothing happens; an event reaches the first after "
        f"{1000 * (heard_s[0] - began):.0f} ms, the last after {1000 * (heard_s[-1] - began):.0f} ms"
    )


def _send_cancel(connection: HTTPConnection, server: Server, job_id: str) -> None:
    connection.request("POST", f"/v1/jobs/{job_id}/cancel", headers=server.headers())
    connection.getresponse().read()


def _hear(selector: selectors.BaseSelector, word: bytes) -> list[float]:
    """When each follower had read `word`."""
    waiting = {key.fd for key in selector.get_map().values()}
    read: dict[int, bytes] = dict.fromkeys(waiting, b"")
    heard = []
    while waiting:
        for key, _ in selector.select(60):
            read[key.fd] += key.fileobj.recv(65536)  # type: ignore[union-attr]
            if key.fd in waiting and word in read[key.fd]:
                waiting.remove(key.fd)
                heard.append(time.perf_counter())
    return heard


def _decide() -> float:
    """Seconds for one plan with 10,000 waiting jobs of 50 owners."""
    template = new_job(read_spec(SPEC), "ann", datetime.now(UTC))
    queue: list[Job] = [replace(template, id=f"j{i}", owner=f"o{i % 50}", workers=1 + i % 4) for i in range(10_000)]
    nodes = [NodeCapacity(f"n{i}", 8.0, 0.0, 8.0, 0.0) for i in range(8)]
    lines = in_lines(queue, Policy())
    began = time.perf_counter()
    schedule(lines, [], nodes, datetime.now(UTC), Policy())
    return time.perf_counter() - began
