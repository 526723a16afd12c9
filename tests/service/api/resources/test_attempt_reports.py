"""What workers send, whatever it is, is mended, cut or refused where it comes in, on either database."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from syncnorm.service.api.report_limits import ReportLimits
from syncnorm.service.cli.progress import summary
from syncnorm.service.integrations.mlflow_run_facts import run_tags
from syncnorm.service.reconciler.backends import attempt_token
from syncnorm.service.store.report_counts import report_counts, set_report_counts
from syncnorm.service.store.tables.reports import MOST_EVENTS
from syncnorm.trainer.contract.protocol import Result
from tests.helpers.service.worker import TIME, Worker, lines

NAN = {"val/dice": math.nan, "val/loss": math.inf, "val/accuracy": 0.5}
WORDS = {"val/dice": "NaN", "val/loss": "Infinity", "val/accuracy": 0.5}


LINE = {"rank": 0, "seq": 1, "at": TIME, "level": "INFO", "text": "a line"}
PROGRESS = {"epoch": 1, "epochs": 2, "step": 5, "steps": 10, "metrics": {}}
FACT = {"path": "p", "step": 5, "epoch": 1, "digest": "d", "size_bytes": 1}
EVENT = {"kind": "phase", "message": "m", "data": {}}
HUGE = (2**31, 2**40, 2**53, 2**63 - 1, 2**63, 2**64, 10**300, -1, -(2**63), 1e308, math.nan, math.inf, -math.inf)
TEXTS = ("\x00", "a\x00b", "\udce9", "x" * 70, "x" * 200, "x" * 5000, "x" * 200_000, "", "🏷" * 3000)
NESTED: Any = 1
for _ in range(60):
    NESTED = {"a": [NESTED]}


def extremes() -> Iterator[tuple[str, dict[str, Any]]]:
    for number in HUGE:
        yield "heartbeat", {"source": "driver", "phase": "training", "step": number}
        for name in ("epoch", "epochs", "step", "steps"):
            yield "progress", {**PROGRESS, name: number}
        yield "progress", {**PROGRESS, "metrics": {"a": number}}
        yield "stacks", {"rank": number, "request": number, "threads": []}
        yield "requests", {"rank": 0, "known": number, "wait_s": 0}
        for name in ("rank", "seq"):
            yield "logs", {"lines": [{**LINE, name: number}]}
        for name in ("step", "epoch", "size_bytes"):
            yield "checkpoints", {**FACT, name: number}
        yield "checkpoints", {**FACT, "kept": [number]}
        yield "placement", {"ranks": [{"rank": number, "host": "h", "pid": number}]}
        yield "events", {**EVENT, "data": {"n": number}}
    for text in TEXTS:
        yield "heartbeat", {"source": text, "phase": "training"}
        yield "progress", {**PROGRESS, "metrics": {text: 1.0}}
        yield "logs", {"lines": [{**LINE, "at": text, "text": text}]}
        yield "checkpoints", {**FACT, "path": text, "digest": text}
        yield "placement", {"ranks": [{"rank": 0, "host": text, "pid": 1, "node_id": text, "gpu": text}]}
        yield "stacks", {"rank": 0, "request": 1, "threads": [{"name": text, "stack": text}]}
        yield "events", {"kind": text, "message": text, "data": {text: text}}
        yield "guarantees", {"guarantees": {key: {"holds": "yes", "why": text} for key in GUARANTEES}}
        yield "guarantees", {"guarantees": {key: {"holds": text, "why": ""} for key in GUARANTEES}}
    yield "events", {**EVENT, "data": {"nested": NESTED}}
    yield "events", {**EVENT, "data": {f"key {n}": "x" * 20 for n in range(10_000)}}
    yield "progress", {**PROGRESS, "metrics": {f"metric {n}": n for n in range(20_000)}}
    yield "logs", {"lines": [{**LINE, "seq": n + 1} for n in range(5_000)]}
    yield "placement", {"ranks": [{"rank": n, "host": "h", "pid": 1} for n in range(10_000)]}
    yield "checkpoints", {**FACT, "kept": list(range(50_000))}


def test_no_extreme_of_any_message_breaks_anything(worker: Worker) -> None:
    worker.context.limits._clock = iter(range(10**6)).__next__  # a second between any two: this is not about the rate
    answers = [(worker.send(path, **body), path, str(body)[:80]) for path, body in extremes()]
    odd = [answer for answer in answers if answer[0] not in (200, 422)]
    for page in ("", "/events", "/logs", "/attempts", "/checkpoints", "/explain", "/stacks?wait_s=0"):
        worker.get(page)
    for _ in range(3):
        worker.world.reconciler.tick()
    metrics = worker.client.get("/metrics").status_code

    assert (odd, metrics) == ([], 200)
    assert worker.job.progress is not None


@pytest.mark.parametrize("way", ["message", "file"])
@pytest.mark.parametrize(
    "odd",
    [
        {"message": "bad header \x00\udce9", "traceback": "\x00"},
        {"message": "x" * 500_000, "traceback": "t" * 300_000},
        {"step": 2**63},
        {"step": -5, "metrics": NAN},
        {"metrics": {"a\x00": 1.0, "b" * 1000: 2.0}, "checkpoint": "\x00"},
    ],
)
def test_odd_result_ends_its_job_and_the_next_one_starts(odd: dict[str, Any], way: str, worker: Worker) -> None:
    result = {"fence": worker.attempt.fence, "outcome": "failed", "reason": "user_error", **odd}
    if way == "message":
        assert worker.send("exit", result=result) == 200
    else:
        folder = Path(worker.context.reconciler.backends.environment.folder(worker.attempt))
        (folder / "result.json").write_text(json.dumps(result))
        worker.world.cluster.submissions.clear()
    worker.world.cluster.kill(worker.attempt.id) if worker.attempt.id in worker.world.cluster.submissions else None

    for _ in range(4):
        worker.world.reconciler.tick()

    assert (worker.job.state, worker.job.reason) == ("failed", "user_error")
    assert worker.world.job(worker.victim_id).state in ("starting", "running")
    assert "\x00" not in worker.job.message
    worker.get("")
    worker.get("/attempts")


def test_numbers_that_are_not_finite_are_values_everywhere(worker: Worker) -> None:
    progress = worker.send("progress", **{**PROGRESS, "metrics": NAN})
    shown, events = worker.get(""), worker.get("/events")["items"]
    listed = json.loads(worker.client.get("/v1/jobs").text, parse_constant=pytest.fail)["items"]
    certificate = {"passed": True, "checks": [], "validation": {"running": NAN, "population": NAN}}
    model = {"uri": "u", "registered": None, "certificate": certificate}
    result = {"fence": worker.attempt.fence, "outcome": "succeeded", "metrics": NAN, "model": model}
    left = worker.send("exit", result=result)
    worker.world.reconciler.tick()
    done = worker.get("")
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(summary(done))

    assert (progress, left) == (200, 200)
    assert shown["progress"]["metrics"] == WORDS
    assert [event["data"]["metrics"] for event in events if event["kind"] == "progress"] == [WORDS]
    assert next(item for item in listed if item["id"] == worker.job_id)["progress"]["metrics"] == WORDS
    assert done["state"] == "succeeded"
    assert done["model"]["certificate"]["validation"]["running"] == WORDS
    assert "NaN" in console.export_text()


def test_estimate_of_a_job_that_never_ends_is_a_number_of_this_world(worker: Worker) -> None:
    worker.send("heartbeat", source="driver", phase="training", step=0)
    worker.world.clock.advance(100)
    worker.send("progress", **{**PROGRESS, "step": 1, "steps": 2**53})
    worker.world.reconciler.tick()

    progress = worker.job.progress
    assert progress is not None
    assert progress["eta_s"] <= 315_360_000
    assert worker.context.reconciler.schedule is not None


def test_worker_cannot_forge_what_the_service_says(worker: Worker) -> None:
    forged = ("succeeded", "failed", "cancel_requested", "stop", "preempt_requested", "progress", "checkpoint", "a b/c")
    for kind in forged:
        assert worker.send("events", **{**EVENT, "kind": kind}) == 200
    assert worker.send("events", **{**EVENT, "kind": "non_finite"}) == 200

    kinds = [event["kind"] for event in worker.get("/events")["items"]][-len(forged) - 1 :]
    assert kinds == [*(f"user.{kind}" for kind in forged[:-1]), "user.a_b_c", "non_finite"]


def test_progress_is_one_event_however_often_it_comes(worker: Worker) -> None:
    before = [event["seq"] for event in worker.get("/events")["items"]]
    for step in range(1, 40):
        worker.send("progress", **{**PROGRESS, "step": step, "steps": 100})

    told = [event for event in worker.get("/events")["items"] if event["kind"] == "progress"]
    assert [event["data"]["step"] for event in told] == [39]
    assert told[0]["seq"] > max(before)  # a follower sees it behind the last one it saw


def test_events_of_a_job_end_with_one_that_says_so(worker: Worker) -> None:
    worker.context.limits._take = lambda *_args: 1  # type: ignore[method-assign]
    with worker.world.database.write() as c:
        report_counts(c, worker.job_id)
        set_report_counts(c, worker.job_id, events=MOST_EVENTS - 1)
    for number in range(5):
        assert worker.send("events", **{**EVENT, "message": str(number)}) == 200

    events = worker.client.get(f"/v1/jobs/{worker.job_id}/events?limit=1000").json()["items"]
    assert [event["kind"] for event in events][-2:] == ["phase", "events_left_out"]


def test_log_of_a_job_keeps_its_newest_lines_and_says_how_many_are_gone(worker: Worker) -> None:
    store, attempt = worker.context.store, worker.attempt
    for part in range(20):
        store.reports.add_lines(
            attempt.id, attempt.fence, lines(500 * part + 1, 500, "x" * 100), most_characters=200_000
        )

    page = worker.get("/logs?limit=1000")["items"]
    text = worker.client.get(f"/v1/jobs/{worker.job_id}/logs?limit=2", headers={"Accept": "text/plain"}).text
    behind = worker.get("/logs?tail=3")["items"]
    kept, characters = store.retention.kept_lines()

    assert "earlier lines of this job were deleted" in page[0]["text"]
    assert int(page[0]["text"].split()[1].replace(",", "")) + kept == 10_000
    assert characters <= 300_000
    assert "earlier lines" in text.splitlines()[0]
    assert [line["seq"] for line in behind] == [9_998, 9_999, 10_000]
    assert page[1]["id"] > page[0]["id"]
    assert kept < 3000


def test_lines_that_came_before_are_not_counted_again(worker: Worker) -> None:
    store, attempt = worker.context.store, worker.attempt
    for _ in range(3):
        store.reports.add_lines(attempt.id, attempt.fence, [*lines(1, 100), *lines(1, 5)])

    assert store.retention.kept_lines()[0] == 100


def test_flood_of_a_worker_that_keeps_to_no_rate_is_cut_with_a_mark() -> None:
    now = [0.0]
    limits = ReportLimits(lambda: now[0])
    kept = (
        limits.lines("t", lines(1, 1000))
        + limits.lines("t", lines(1001, 10_000))
        + limits.lines("t", lines(11_001, 10))
    )
    now[0] = 1.0
    after = limits.lines("t", lines(12_000, 10))

    assert len(kept) == 4000
    assert "7,010 lines dropped here" in after[0].text
    assert len(limits.lines("another", lines(1, 10))) == 10


@pytest.mark.parametrize("either_database", ["sqlite"], indirect=True)  # the rate is kept in memory
def test_messages_of_one_attempt_have_a_rate_and_those_of_others_their_own(worker: Worker) -> None:
    worker.context.limits._clock = lambda: 0.0
    codes = [worker.send("events", **EVENT) for _ in range(620)]

    assert 429 in codes
    assert worker.send("heartbeat", source="rank-0", phase="training") == 200
    assert (
        worker.send("exit", result=Result(fence=worker.attempt.fence, outcome="failed").model_dump(mode="json")) == 200
    )


GUARANTEES = {
    "equals_one_device": {"holds": "partly", "why": "every worker draws dropout masks of its own"},
    "resumes_exactly": {"holds": "yes", "why": "all state continues"},
    "exported": {"holds": "no", "why": "forward takes no batch"},
}


def test_job_shows_what_its_attempt_says_that_holds(worker: Worker) -> None:
    assert worker.get("")["guarantees"] is None

    assert worker.send("guarantees", guarantees=GUARANTEES) == 200

    assert worker.get("")["guarantees"] == GUARANTEES


def test_run_in_mlflow_gets_the_guarantees_also_if_they_come_while_it_is_described(worker: Worker) -> None:
    store = worker.world.store
    ((job, attempt),) = [one for one in store.descriptions.pending(9) if one[0].id == worker.job.id]

    worker.send("guarantees", guarantees=GUARANTEES)
    store.descriptions.done(job, attempt)

    ((again, _),) = [one for one in store.descriptions.pending(9) if one[0].id == worker.job.id]
    assert ("syncnorm.guarantee.exported", "no: forward takes no batch") in run_tags(again, [])
    store.descriptions.done(again, attempt)
    assert [one for one in store.descriptions.pending(9) if one[0].id == worker.job.id] == []


def test_placement_names_the_ranks_that_the_job_has(worker: Worker) -> None:
    worker.send("placement", ranks=[{"rank": n, "host": "h", "pid": 1} for n in range(4000)])

    attempt = worker.get("/attempts")["items"][0]
    assert ([place["rank"] for place in attempt["placement"]], attempt["placed"]) == ([0, 1], 2)
    assert len(json.dumps(attempt)) < 2000


@pytest.mark.parametrize("path", ["%00", "x%00y", "a" * 100, "../x"])
def test_attempt_that_cannot_be_is_refused(path: str, worker: Worker) -> None:
    headers = {"Authorization": f"Bearer {attempt_token('f')}"}
    url = f"/internal/v1/attempts/{path}/heartbeat"
    answer = worker.client.post(url, json={"fence": "f", "source": "driver", "phase": "training"}, headers=headers)

    assert answer.status_code in (404, 409, 422)


@pytest.mark.parametrize("fence", ["\x00", "\udce9", "f" * 1000, ""])
def test_fence_that_cannot_be_is_refused(fence: str, worker: Worker) -> None:
    body = json.dumps({"fence": fence, "source": "driver", "phase": "training"})
    token = attempt_token(fence.encode("utf-8", "replace").decode())
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    answer = worker.client.post(f"/internal/v1/attempts/{worker.attempt.id}/heartbeat", content=body, headers=headers)

    assert answer.status_code in (401, 409)
