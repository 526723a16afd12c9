"""Metrics reach a real MLflow once each, whatever happens to it meanwhile, and training never waits for it."""

from __future__ import annotations

import json
import math
import statistics
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from syncnorm.trainer.reporting import metric_spool
from syncnorm.trainer.reporting.metric_spool import MetricSender, Spool, rest_client
from tests.trainer.conftest import Mlflow


def fill(path: Path, steps: range) -> Path:
    for step in steps:
        append(path, {"train/loss": float(step), "norm/a.bn/drift": step / 2}, step)
    return path


def append(path: Path, metrics: dict[str, float], step: int) -> None:
    with closing(Spool(path)) as spool:
        spool.append(metrics, step)


def test_points_arrive_once_each_those_that_are_not_finite_too(mlflow_server: Mlflow, tmp_path: Path) -> None:
    run = mlflow_server.new_run()
    spool = fill(tmp_path / "s", range(5))
    append(spool, {"train/loss": math.nan, "val/loss": math.inf, "lr": 0.1}, 5)

    delivered = MetricSender(rest_client(mlflow_server.uri), run, [spool]).start().close(30)

    assert delivered
    history = mlflow_server.history(run, "train/loss")
    assert history[:5] == [(step, float(step)) for step in range(5)]
    assert history[5][0] == 5
    assert math.isnan(float(history[5][1]))
    assert mlflow_server.history(run, "val/loss")[0][1] > 1e308  # as large as MLflow goes
    assert mlflow_server.history(run, "lr") == [(5, 0.1)]


ODD_LINES = ("123", "[]", "null", '"x"', "{}", '{"key": 1, "value": 1, "step": 1, "timestamp": 1}', "[" * 50_000)
ODD_POINTS = ({"step": 2**70}, {"step": -1}, {"step": None}, {"value": "high"}, {"value": [1]}, {"timestamp": {}})


def test_line_that_is_json_and_no_point_does_not_end_the_thread(mlflow_server: Mlflow, tmp_path: Path) -> None:
    run = mlflow_server.new_run()
    spool = fill(tmp_path / "s", range(2))
    point = {"key": "train/loss", "value": 1.0, "step": 7, "timestamp": 1}
    with spool.open("a") as file:
        file.writelines(f"{line}\n" for line in (*ODD_LINES, *(json.dumps(point | odd) for odd in ODD_POINTS)))
    fill(spool, range(2, 4))

    assert MetricSender(rest_client(mlflow_server.uri), run, [spool]).start().close(30)
    assert mlflow_server.history(run, "train/loss") == [(step, float(step)) for step in range(4)]


@pytest.mark.parametrize("answer", ["<html>", "{}", "null", "[]", '{"run": null}'])
def test_odd_answer_does_not_end_the_thread(answer: str, tmp_path: Path) -> None:
    spool, answers = fill(tmp_path / "s", range(2)), [answer]
    sent: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            sent.append(request)
            return httpx.Response(200, json={})
        run = {"run": {"info": {"lifecycle_stage": "active"}, "data": {}}}
        return httpx.Response(200, text=answers.pop()) if answers else httpx.Response(200, json=run)

    client = httpx.Client(base_url="http://mlflow", transport=httpx.MockTransport(handle))

    assert MetricSender(client, "r", [spool]).start().close(30)
    assert len(sent) == 1


def test_more_points_than_a_request_takes(mlflow_server: Mlflow, tmp_path: Path) -> None:
    run = mlflow_server.new_run()
    spool = fill(tmp_path / "s", range(1200))

    assert MetricSender(rest_client(mlflow_server.uri), run, [spool]).start().close(60)

    assert len(mlflow_server.history(run, "train/loss")) == 1200


def test_a_resumed_attempt_sends_what_the_one_before_could_not_and_nothing_twice(
    mlflow_server: Mlflow, tmp_path: Path
) -> None:
    run = mlflow_server.new_run()
    first = fill(tmp_path / "1", range(10))
    MetricSender(rest_client(mlflow_server.uri), run, [first]).start().close(30)
    append(first, {"train/loss": 10.0}, 10)  # written, never sent: the attempt was killed
    second = fill(tmp_path / "2", range(8, 15))  # it went on from step 8

    MetricSender(rest_client(mlflow_server.uri), run, [first, second]).start().close(30)

    assert mlflow_server.history(run, "train/loss") == [(step, float(step)) for step in range(15)]


def test_a_half_written_line_waits_for_its_other_half(mlflow_server: Mlflow, tmp_path: Path) -> None:
    run = mlflow_server.new_run()
    spool = fill(tmp_path / "s", range(3))
    with spool.open("a") as file:
        file.write('{"key": "train/loss", "val')

    MetricSender(rest_client(mlflow_server.uri), run, [spool]).start().close(30)

    assert mlflow_server.history(run, "train/loss") == [(0, 0.0), (1, 1.0), (2, 2.0)]


def test_what_is_no_point_is_left_out_and_holds_nothing_up(mlflow_server: Mlflow, tmp_path: Path) -> None:
    run = mlflow_server.new_run()
    spool = fill(tmp_path / "s", range(2))
    with spool.open("ab") as file:
        file.write(b"\x00\x00\n\n")
    append(spool, {}, 2)
    fill(spool, range(3, 4))

    assert MetricSender(rest_client(mlflow_server.uri), run, [spool]).start().close(30)

    assert mlflow_server.history(run, "train/loss") == [(0, 0.0), (1, 1.0), (3, 3.0)]


def test_a_metric_that_mlflow_refuses_holds_no_other_up(
    mlflow_server: Mlflow, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = mlflow_server.new_run()
    spool = fill(tmp_path / "s", range(3))
    append(spool, {"a?b": 1.0}, 3)
    fill(spool, range(4, 6))

    assert MetricSender(rest_client(mlflow_server.uri), run, [spool]).start().close(30)

    assert [step for step, _ in mlflow_server.history(run, "train/loss")] == [0, 1, 2, 4, 5]
    assert "a?b" in caplog.text


def test_a_run_that_was_deleted_is_given_up(
    mlflow_server: Mlflow, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = mlflow_server.new_run()
    sender = MetricSender(rest_client(mlflow_server.uri), run, [fill(tmp_path / "s", range(3))])
    with rest_client(mlflow_server.uri) as rest:
        rest.post("runs/delete", json={"run_id": run}).raise_for_status()

    assert not sender.start().close(30)
    assert f"run {run} was deleted" in caplog.text


@pytest.mark.timeout(300)
def test_an_outage_loses_no_point_doubles_none_and_holds_nobody_up(mlflow_server: Mlflow, tmp_path: Path) -> None:
    run = mlflow_server.new_run()
    path, longest_s = tmp_path / "s", 0.0
    sender = MetricSender(rest_client(mlflow_server.uri), run, [path]).start()
    with closing(Spool(path)) as spool:
        for step in range(300):
            if step == 100:
                mlflow_server.kill()
            if step == 200:
                mlflow_server.start()
            began = time.monotonic()
            spool.append({"train/loss": float(step)}, step)
            longest_s = max(longest_s, time.monotonic() - began)

    assert sender.close(60)
    assert mlflow_server.history(run, "train/loss") == [(step, float(step)) for step in range(300)]
    assert longest_s < 5  # one call to a dead server, even with short timeouts, takes longer than appending ever may


class Cable(httpx.BaseTransport):
    """To a real MLflow, as long as it is plugged in."""

    def __init__(self) -> None:
        self.is_in = True
        self._real = httpx.HTTPTransport()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if not self.is_in:
            raise httpx.ConnectError("no route to host")
        return self._real.handle_request(request)

    def close(self) -> None:
        self._real.close()


def cut_off_then_back(
    server: Mlflow, folder: Path, counts: Callable[[], bool | None]
) -> tuple[bool, list[tuple[int, float]]]:
    """An attempt is cut off after step 4 and works on, another goes on from there, and the first is back: whether the
    first delivered all it had, and what MLflow has."""
    run, cable = server.new_run(), Cable()
    client = httpx.Client(base_url=f"{server.uri}/api/2.0/mlflow/", transport=cable)
    zombie = MetricSender(client, run, [fill(folder / "1", range(5))], counts)
    zombie._deliver()
    cable.is_in = False
    zombie.start()
    append(folder / "1", {"train/loss": -1.0}, 7)
    while not zombie.was_away:
        time.sleep(0.01)
    assert MetricSender(rest_client(server.uri), run, [fill(folder / "2", range(5, 10))]).start().close(30)
    cable.is_in = True
    return zombie.close(30), server.history(run, "train/loss")


def test_attempt_that_was_cut_off_and_given_up_sends_no_more(mlflow_server: Mlflow, tmp_path: Path) -> None:
    delivered, history = cut_off_then_back(mlflow_server, tmp_path, lambda: False)

    assert not delivered
    assert history == [(step, float(step)) for step in range(10)]


def test_attempt_that_was_cut_off_waits_for_word_that_it_still_counts(mlflow_server: Mlflow, tmp_path: Path) -> None:
    answers = iter([None, None, True])

    delivered, history = cut_off_then_back(mlflow_server, tmp_path, lambda: next(answers))

    assert delivered
    assert (7, -1.0) in history
    assert next(answers, "asked no more") == "asked no more"


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_a_minute_without_mlflow_slows_no_step(mlflow_server: Mlflow, tmp_path: Path) -> None:
    run, pace = mlflow_server.new_run(), threading.Event()
    path, took_s = tmp_path / "s", list[float]()
    sender = MetricSender(rest_client(mlflow_server.uri), run, [path]).start()
    with closing(Spool(path)) as spool:
        for step in range(2000):  # 100 steps before, then 60 s away
            if step == 100:
                mlflow_server.kill()
            if step == 1900:
                mlflow_server.start()
            began = time.monotonic()
            spool.append({"train/loss": float(step)}, step)
            took_s.append(time.monotonic() - began)
            pace.wait(0.033)

    assert sender.close(120)
    assert mlflow_server.history(run, "train/loss") == [(step, float(step)) for step in range(2000)]
    assert statistics.median(took_s[100:1900]) < 0.001  # a step of 50 ms is slowed by less than 2 %


def test_the_end_does_not_wait_for_ever_and_says_what_is_missing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool = fill(tmp_path / "s", range(3))
    sender = MetricSender(rest_client("http://127.0.0.1:9"), "no-run", [spool]).start()

    assert not sender.close(0.1)
    assert "MLflow run no-run lacks metrics of this attempt" in caplog.text


# Steps out of order, as a module may log them


def by_step(server: Mlflow, run: str, key: str) -> list[tuple[int, float]]:
    return sorted(server.history(run, key))


def test_step_below_the_last_one_is_sent(mlflow_server: Mlflow, tmp_path: Path) -> None:
    run, spool = mlflow_server.new_run(), tmp_path / "s"
    for step in (1, 2, 4, 6, 5, 3, 7):
        append(spool, {"mine": float(step), "other": 0.0}, step)

    assert MetricSender(rest_client(mlflow_server.uri), run, [spool]).start().close(30)

    assert by_step(mlflow_server, run, "mine") == [(step, float(step)) for step in range(1, 8)]
    assert [step for step, _ in by_step(mlflow_server, run, "other")] == list(range(1, 8))


def test_step_below_the_last_one_is_sent_in_a_later_request_too(mlflow_server: Mlflow, tmp_path: Path) -> None:
    run, spool = mlflow_server.new_run(), tmp_path / "s"
    sender = MetricSender(rest_client(mlflow_server.uri), run, [spool])
    for step in (6, 5, 7, 5, 6, 1):
        append(spool, {"mine": float(step)}, step)
        sender._deliver()
    sender.start().close(30)

    assert by_step(mlflow_server, run, "mine") == [(step, float(step)) for step in (1, 5, 6, 7)]


def test_resumed_attempt_repeats_steps_in_any_order_and_each_arrives_once(
    mlflow_server: Mlflow, tmp_path: Path
) -> None:
    run = mlflow_server.new_run()
    first, second = tmp_path / "1", tmp_path / "2"
    steps_of = {"by_step": (10, 20, 30, 40), "by_epoch": (1, 1, 2, 2), "backwards": (4, 3, 2, 1)}
    for now in range(4):
        for key, steps in steps_of.items():
            append(first, {key: 1.0}, steps[now])
    MetricSender(rest_client(mlflow_server.uri), run, [first]).start().close(30)
    append(first, {"by_step": 1.0, "late": 1.0}, 50)  # never sent: the attempt was killed
    for now in range(2, 4):
        for key, steps in steps_of.items():
            append(second, {key: 2.0}, steps[now])
    append(second, {"by_step": 2.0, "late": 2.0}, 45)  # which the first attempt did not log
    append(second, {"by_step": 2.0, "late": 2.0}, 50)
    append(second, {"backwards": 2.0}, 0)

    MetricSender(rest_client(mlflow_server.uri), run, [first, second]).start().close(30)

    assert by_step(mlflow_server, run, "by_step") == [(10, 1), (20, 1), (30, 1), (40, 1), (45, 2), (50, 1)]
    assert by_step(mlflow_server, run, "by_epoch") == [(1, 1), (2, 1)]
    assert by_step(mlflow_server, run, "backwards") == [(0, 2), (1, 1), (2, 1), (3, 1), (4, 1)]
    assert by_step(mlflow_server, run, "late") == [(45, 2), (50, 1)]


def test_steps_of_a_key_are_asked_for_by_the_page(
    mlflow_server: Mlflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metric_spool, "HISTORY_A_REQUEST", 3)
    run = mlflow_server.new_run()
    first, second = fill(tmp_path / "1", range(10)), fill(tmp_path / "2", range(5, 12))
    MetricSender(rest_client(mlflow_server.uri), run, [first]).start().close(30)

    MetricSender(rest_client(mlflow_server.uri), run, [first, second]).start().close(30)

    assert mlflow_server.history(run, "train/loss") == [(step, float(step)) for step in range(12)]
