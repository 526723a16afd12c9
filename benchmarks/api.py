"""What a request costs: submits with a token, an idempotency key and an event; lists over many jobs; a thousand
followers; a plan for a long queue.

Peer: `/healthz` of the same server in the same run, which is the framework alone. The clients share the machine
with the server, but take little of it: see `load.py`. The CPU time of both is told beside.
"""

from __future__ import annotations

import json
import os
import selectors
import statistics
import time
import uuid
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from http.client import HTTPConnection

from benchmarks.harness import Row, Table
from benchmarks.load import Load, request, send
from benchmarks.service_process import SPEC, Server, service_process
from syncnorm.service.jobs.admission import new_job
from syncnorm.service.jobs.job import Job
from syncnorm.service.scheduling.ordering import queues_by_owner
from syncnorm.service.scheduling.schedule import Policy
from syncnorm.service.scheduling.scheduler import schedule
from syncnorm.trainer.contract.plan import NodeCapacity
from syncnorm.trainer.contract.spec_reader import read_spec

CONNECTIONS = 8
"""That send at the same time."""
ROUNDS = 5
REQUESTS = 100
"""Of each client in each round."""
FOLLOWERS = 1000
JOBS = int(os.environ.get("BENCH_JOBS", "100000"))

Make = Callable[[Server], bytes]
"""The next request of a kind."""


@dataclass(frozen=True)
class Round:
    """cpu_s: of the server, for all requests together."""

    load: Load
    cpu_s: float

    @property
    def count(self) -> int:
        return len(self.load.each_s)

    @property
    def p95_s(self) -> float:
        return sorted(self.load.each_s)[int(0.95 * self.count)]


def run() -> Table:
    kinds: dict[str, Make] = {
        "healthz": get("/healthz"),
        "submit": submit,
        "list 50": get("/v1/jobs"),
        "list by label": get("/v1/jobs?label=n:7"),
        "list by state": get("/v1/jobs?state=queued"),
    }
    with service_process(JOBS) as server:
        rounds: dict[str, list[Round]] = {kind: [] for kind in kinds}
        for _ in range(ROUNDS):
            for kind, make in kinds.items():
                rounds[kind].append(send_round(server, make))
        for kind, measured in rounds.items():
            _tell(kind, measured)
        print(follow(server, FOLLOWERS))
    passes = [pass_over_queue(10_000) for _ in range(ROUNDS)]
    print(f"plan with 10,000 queued: {1000 * min(passes):.1f} ms, median {1000 * statistics.median(passes):.1f}")
    rows = [_row(kind, measured, rounds["healthz"]) for kind, measured in rounds.items()]
    return Table(name="api", peer="healthz", rows=rows, workers=CONNECTIONS)


def get(path: str) -> Make:
    return lambda server: request("GET", path, server.headers())


def submit(server: Server) -> bytes:
    headers = server.headers({"Idempotency-Key": uuid.uuid4().hex, "Content-Type": "application/json"})
    return request("POST", "/v1/jobs", headers, json.dumps(SPEC).encode())


def send_round(server: Server, make: Make) -> Round:
    """`REQUESTS` of each client."""
    requests = [[make(server) for _ in range(REQUESTS)] for _ in range(CONNECTIONS)]
    cpu_s = server.cpu_s()
    load = send(server.port, requests)
    return Round(load, server.cpu_s() - cpu_s)


def _tell(kind: str, rounds: list[Round]) -> None:
    rates = [one.count / one.load.wall_s for one in rounds]
    p95s = [1000 * one.p95_s for one in rounds]
    server_ms, client_ms = (1000 * min(each) for each in _cpu_s(rounds))
    print(
        f"{kind:<14} best {max(rates):6.0f}/s  median {statistics.median(rates):6.0f}/s   "
        f"p95 best {min(p95s):5.1f} ms  median {statistics.median(p95s):5.1f} ms   "
        f"CPU: server {server_ms:.2f} ms, client {client_ms:.2f} ms"
    )


def _cpu_s(rounds: list[Round]) -> tuple[list[float], list[float]]:
    """Of one request in each round: the server's and the client's."""
    return [one.cpu_s / one.count for one in rounds], [one.load.client_s / one.count for one in rounds]


def _row(kind: str, rounds: list[Round], peer: list[Round]) -> Row:
    seconds, against = ([one.load.wall_s / one.count for one in these] for these in (rounds, peer))
    return Row(
        setting=f"{JOBS} jobs",
        competitor=kind,
        minimum_s=min(seconds),
        median_s=statistics.median(seconds),
        ratio_of_minima=min(seconds) / min(against),
        ratio_of_medians=statistics.median(seconds) / statistics.median(against),
    )


@dataclass(frozen=True)
class Followed:
    """idle: cores that the server uses while nothing happens. first_s, last_s: until an event reaches a follower."""

    followers: int
    idle: float
    first_s: float
    last_s: float

    def __str__(self) -> str:
        return (
            f"{self.followers} followers: {100 * self.idle:.0f} % of a core while nothing happens; an event reaches "
            f"the first after {1000 * self.first_s:.0f} ms, the last after {1000 * self.last_s:.0f} ms"
        )


def follow(server: Server, followers: int) -> Followed:
    """How long followers of one job wait for an event, and what they cost while nothing happens."""
    connection = server.connect()
    headers = server.headers({"Content-Type": "application/json"})
    connection.request("POST", "/v1/jobs", json.dumps(SPEC), headers)
    job_id = json.loads(connection.getresponse().read())["id"]
    with selectors.DefaultSelector() as selector:
        for _ in range(followers):
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
    return Followed(followers, idle, heard_s[0] - began, heard_s[-1] - began)


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


def pass_over_queue(length: int) -> float:
    """Seconds for one plan with that many waiting jobs of 50 owners."""
    template = new_job(read_spec(SPEC), "ann", datetime.now(UTC))
    queue: list[Job] = [replace(template, id=f"j{i}", owner=f"o{i % 50}", workers=1 + i % 4) for i in range(length)]
    nodes = [NodeCapacity(f"n{i}", 8.0, 0.0, 8.0, 0.0) for i in range(8)]
    lines = queues_by_owner(queue, Policy())
    began = time.perf_counter()
    schedule(lines, [], nodes, datetime.now(UTC), Policy())
    return time.perf_counter() - began
