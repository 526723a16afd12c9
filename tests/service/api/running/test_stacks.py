"""GET /v1/jobs/{id}/stacks asks real processes over a socket, and shows what came in time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest

from syncnorm.service.api.app import create_app
from syncnorm.service.reconciler.backends import attempt_token
from syncnorm.trainer.contract.protocol import Launch
from syncnorm.trainer.contract.spec_reader import read_spec
from tests.helpers.service.api import _no_lifespan, context_of, on_a_socket
from tests.helpers.service.worker import Worker

PROCESS = """
import sys, time
from syncnorm.trainer.contract.protocol import Launch
from syncnorm.trainer.debugging.request_watcher import RequestWatcher
from syncnorm.trainer.reporting.reporter import Reporter

launch, rank = Launch.model_validate_json(sys.argv[1]), int(sys.argv[2])

def waits_for_the_others():
    time.sleep(600)

def train():
    reporter = Reporter(launch, rank).start()
    RequestWatcher(launch, rank, reporter).start()
    print("up", flush=True)
    waits_for_the_others()

train()
"""


@contextmanager
def answering(worker: Worker) -> Iterator[int]:
    """The port of one process of the service. Several share a database."""
    context = context_of(worker.world, worker.world.folder, False, {"allowed_hosts": ("127.0.0.1",)})
    app = create_app(context)
    app.router.lifespan_context = _no_lifespan
    with on_a_socket(app, context.end_followers) as port:
        yield port


@contextmanager
def processes(worker: Worker, port: int, ranks: tuple[int, ...] = (-1, 0, 1)) -> Iterator[dict[int, int]]:
    """Pids by rank."""
    launch = Launch(
        job_id=worker.job_id,
        attempt=1,
        fence=worker.attempt.fence,
        spec=read_spec(worker.job.spec.document),
        service_url=f"http://127.0.0.1:{port}",
        token=attempt_token(worker.attempt.fence),
        mlflow_uri="",
        mlflow_run_id="",
        resume_from=None,
    )
    with ExitStack() as stack:
        pids = {}
        for rank in ranks:
            command = [sys.executable, "-c", PROCESS, launch.model_dump_json(), str(rank)]
            process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
            stack.callback(process.kill)
            pids[rank] = process.pid
            assert process.stdout is not None and process.stdout.readline() == "up\n"
        time.sleep(0.5)  # until each of them has its request open
        yield pids


def ask(worker: Worker, port: int, wait_s: float = 5) -> httpx.Response:
    url = f"http://127.0.0.1:{port}/v1/jobs/{worker.job_id}/stacks"
    return httpx.get(url, params={"wait_s": wait_s}, timeout=60)


def stacks(worker: Worker, port: int, wait_s: float = 5) -> dict[str, Any]:
    answer = ask(worker, port, wait_s)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_every_process_says_what_it_is_doing_and_the_event_who_asked(worker: Worker) -> None:
    with answering(worker) as port, processes(worker, port):
        found = stacks(worker, port)

    assert [one["rank"] for one in found["items"]] == [-1, 0, 1]
    assert all("in waits_for_the_others" in one["threads"][0]["stack"] for one in found["items"])
    assert {thread["name"] for thread in found["items"][1]["threads"]} == {"MainThread", "reporter"}
    assert (found["attempt"], found["is_running"], found["silent"]) == (1, True, [])
    events = [event for event in worker.get("/events")["items"] if event["kind"] == "stacks_requested"]
    assert [(event["actor"]["kind"], event["data"]) for event in events] == [("user", {"attempt": 1})]


def test_a_process_that_is_stopped_is_named_and_the_others_are_shown(worker: Worker) -> None:
    with answering(worker) as port, processes(worker, port) as pids:
        os.kill(pids[1], signal.SIGSTOP)
        found = stacks(worker, port, wait_s=3)

    assert [one["rank"] for one in found["items"]] == [-1, 0]
    assert found["silent"] == [1]


def test_asking_again_shows_what_is_done_now(worker: Worker) -> None:
    with answering(worker) as port, processes(worker, port):
        first = stacks(worker, port)
        worker.world.clock.advance(60)
        second = stacks(worker, port)

    assert second["silent"] == []
    assert min(one["at"] for one in second["items"]) > max(one["at"] for one in first["items"])


def test_who_asks_at_the_same_time_gets_the_same_answer(worker: Worker) -> None:
    with answering(worker) as port, processes(worker, port):
        first, second = stacks(worker, port), stacks(worker, port)

    assert first == second
    assert [event["kind"] for event in worker.get("/events")["items"]].count("stacks_requested") == 1


def test_another_process_of_the_service_may_hold_the_connections(worker: Worker) -> None:
    with answering(worker) as port, answering(worker) as other, processes(worker, other):
        found = stacks(worker, port)

    assert found["silent"] == []


def test_of_an_ended_attempt_the_stacks_that_a_rank_asked_for_are_kept(worker: Worker) -> None:
    with answering(worker) as port, processes(worker, port):
        assert worker.send("stacks/request") == 200
        until = time.monotonic() + 20
        while len(worker.world.store.stacks.of_attempt(worker.job_id, 1)) < 3 and time.monotonic() < until:
            time.sleep(0.05)
    result = {"fence": worker.attempt.fence, "outcome": "failed", "reason": "collective_timeout", "message": "Waited."}
    worker.send("exit", result=result)
    for _ in range(3):
        worker.world.reconciler.tick()

    found = worker.get("/stacks")

    assert worker.attempt.ended_at is not None
    assert [one["rank"] for one in found["items"]] == [-1, 0, 1]
    assert (found["is_running"], found["silent"]) == (False, [])
    events = [event for event in worker.get("/events")["items"] if event["kind"] == "stacks_requested"]
    assert [event["actor"]["kind"] for event in events] == ["worker"]


def test_a_job_without_a_process_is_refused(worker: Worker) -> None:
    queued = worker.client.get(f"/v1/jobs/{worker.victim_id}/stacks")
    nobody = worker.client.get("/v1/jobs/job_nobody/stacks")

    assert (queued.status_code, queued.json()["code"]) == (409, "state_conflict")
    assert "has no process to look into" in queued.json()["detail"]
    assert nobody.status_code == 404


def test_no_rank_beyond_those_of_the_job_is_kept(worker: Worker) -> None:
    threads = [{"name": "MainThread", "stack": "  here"}]

    assert worker.send("stacks", rank=2, request=1, threads=threads) == 200
    assert worker.send("stacks", rank=1, request=1, threads=threads) == 200

    assert [one.rank for one in worker.world.store.stacks.of_attempt(worker.job_id, 1)] == [1]


@pytest.mark.parametrize("path", ["stacks", "stacks/request", "requests"])
def test_a_superseded_attempt_is_told_so(worker: Worker, path: str) -> None:
    body: dict[str, Any] = {"stacks": {"rank": 0, "request": 1, "threads": []}, "requests": {"rank": 0, "known": 0}}
    fence = worker.attempt.fence
    worker.send("exit", result={"fence": fence, "outcome": "failed", "reason": "user_error"})
    for _ in range(3):
        worker.world.reconciler.tick()

    assert worker.send(path, **body.get(path, {})) == 409


def test_a_job_that_is_deleted_takes_its_stacks_along(worker: Worker) -> None:
    worker.send("stacks", rank=0, request=1, threads=[])
    worker.send("exit", result={"fence": worker.attempt.fence, "outcome": "failed", "reason": "user_error"})
    while worker.attempt.released_at is None:
        worker.world.step()

    assert worker.client.delete(f"/v1/jobs/{worker.job_id}").status_code == 204

    assert worker.world.store.stacks.of_attempt(worker.job_id, 1) == []
