"""Ten to a hundred thousand jobs in the service: what a submit, a list and a pass over the queue take."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.api import Make, Round, get, pass_over_queue, send_round, submit
from benchmarks.growth.curves import Curve
from benchmarks.service_process import service_process

JOBS = (10, 100, 1_000, 10_000, 100_000)
REQUESTS: dict[str, Make] = {
    "submit": submit,
    "list of 50": get("/v1/jobs"),
    "list by label": get("/v1/jobs?label=n:7"),
}
ROUNDS = 3


def measure() -> Iterator[Curve]:
    found = [_one(count) for count in JOBS]
    lines = {name: [1000 * min(one.p95_s for one in each[name]) for each in found] for name in REQUESTS}
    yield Curve("jobs", "Requests, 8 clients at a time", "jobs in the database", "p95 in ms", JOBS, lines)
    passes = [1000 * min(pass_over_queue(count) for _ in range(ROUNDS)) for count in JOBS]
    yield Curve("queue", "One pass of the scheduler", "queued jobs", "ms, minimum", JOBS, {"jobs of 50 owners": passes})


def _one(count: int) -> dict[str, list[Round]]:
    with service_process(count) as server:
        return {name: [send_round(server, make) for _ in range(ROUNDS)] for name, make in REQUESTS.items()}
