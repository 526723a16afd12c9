"""A profile of real steps: what it says of slow layers, and that it never harms training."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import record_function

from syncnorm.trainer.contract.profile import ProfileAnswer, ProfileRequest, ProfileSummary
from syncnorm.trainer.debugging import profiling
from syncnorm.trainer.debugging.profile_delivery import ProfileDelivery
from syncnorm.trainer.debugging.profiler_session import ProfilerBusyError, ProfilerSession, Recording
from syncnorm.trainer.debugging.profiling import Profiling
from syncnorm.trainer.debugging.trace_file import TraceError, TraceWork, process
from syncnorm.trainer.errors import StopRequested
from syncnorm.trainer.ranks.rank_context import single_process_group
from syncnorm.trainer.ranks.stop_agreement import MOST_WITHOUT
from syncnorm.trainer.storage.attempt_layout import opened
from syncnorm.trainer.worker.fit import fit
from tests.helpers.chrome_trace import read_trace
from tests.helpers.trainer.ranks import RecordingReporter, build, launch_of, rank_context

FORWARD_S, BACKWARD_S, OTHER_S = 0.004, 0.008, 0.02


class _Slow(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, _backward_s: float) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], _: Tensor) -> None:
        ctx.backward_s = inputs[1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        time.sleep(ctx.backward_s)
        return grads[0], None


class SlowNorm(nn.BatchNorm1d):
    def forward(self, input: Tensor) -> Tensor:
        time.sleep(FORWARD_S)
        y: Tensor = _Slow.apply(super().forward(input), BACKWARD_S)  # type: ignore[no-untyped-call]
        return y


class SlowOther(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        time.sleep(OTHER_S)
        y: Tensor = _Slow.apply(x, OTHER_S)  # type: ignore[no-untyped-call]
        return y


def work_of(recording: Recording, folder: Path, **changes: Any) -> TraceWork:
    recording.save(folder / "raw.json")
    fields: dict[str, Any] = {
        "raw": str(folder / "raw.json"),
        "target": str(folder / "profile" / "trace.json.gz"),
        "nodes": recording.nodes,
        "on_device": False,
        "hidden": [],
        "most_bytes": 2**20,
        "most_layers": 10,
        "most_operators": 10,
    }
    return TraceWork(**fields | changes)


def record(network: nn.Module, steps: int = 2) -> Recording:
    session = ProfilerSession(network, on_device=False, first_step=10)
    for _ in range(steps):
        session.begin_step()
        network(torch.randn(4, 3, requires_grad=True)).sum().backward()
        session.end_step()
    return session.stop()


def test_a_slow_layer_is_named_and_what_others_take_is_not_its_own(tmp_path: Path) -> None:
    network = nn.Sequential(SlowOther(), SlowNorm(3), SlowOther(), nn.BatchNorm1d(3))

    found = process(work_of(record(network), tmp_path))
    summary = ProfileSummary(first_step=10, **found["summary"])
    slow, plain = summary.layers

    assert (slow.path, plain.path, summary.steps) == ("1", "3", 2)
    assert slow.forward_ms >= 1000 * FORWARD_S
    assert slow.backward_ms >= 1000 * BACKWARD_S
    # Four times another 20 ms is slept in each step, so whatever counted one of them would be beyond this.
    assert slow.forward_ms + slow.backward_ms + plain.forward_ms + plain.backward_ms <= summary.step_ms - 4000 * OTHER_S
    assert plain.backward_ms > 0
    assert summary.exchange_ms == 0
    assert len(read_trace(tmp_path / "profile" / "trace.json.gz")) > 20


def test_no_hook_is_left_and_a_second_profiler_is_refused() -> None:
    network = nn.Sequential(nn.BatchNorm1d(3))
    session = ProfilerSession(network, on_device=False, first_step=0)
    with pytest.raises(ProfilerBusyError, match="recording with torch"):
        ProfilerSession(network, on_device=False, first_step=0)
    session.stop()

    assert not network[0]._forward_hooks
    assert not network[0]._forward_pre_hooks


def test_a_trace_holds_neither_secrets_nor_the_path_it_was_written_to(tmp_path: Path) -> None:
    session = ProfilerSession(nn.Identity(), on_device=False, first_step=0)
    session.begin_step()
    with record_function("load with 1234-secret"):
        torch.ones(2)
    session.end_step()

    process(work_of(session.stop(), tmp_path, hidden=["1234-secret"]))
    events = read_trace(tmp_path / "profile" / "trace.json.gz")

    assert "load with ***" in {event["name"] for event in events}
    assert str(tmp_path) not in str(events)


def test_a_trace_that_is_too_large_is_not_kept_but_summarized(tmp_path: Path) -> None:
    found = process(work_of(record(nn.Sequential(nn.BatchNorm1d(3))), tmp_path, most_bytes=100))

    assert found["bytes"] == 0
    assert found["summary"]["steps"] == 2
    assert not (tmp_path / "profile").exists()


def test_a_trace_that_can_t_be_read_is_an_answer(tmp_path: Path) -> None:
    work = work_of(record(nn.Identity()), tmp_path)
    Path(work.raw).write_text('{"traceEvents": [{"ph": "X"')

    with pytest.raises(TraceError, match="could not be read"):
        process(work)


class Reporter(RecordingReporter):
    """Keeps the answers to requests for a profile."""

    hidden = ()

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__(stop_at=stop_at)
        self.answers: dict[int, ProfileAnswer] = {}

    def profile(self, request: int, answer: ProfileAnswer) -> None:
        self.answers[request] = answer


def request(number: int, **options: Any) -> ProfileRequest:
    return ProfileRequest(number=number, **{"seconds": 60.0, "steps": None, "ranks": [0]} | options)


def trained(root: Path, requests: list[ProfileRequest], stop_at: int | None = None, **changes: Any) -> Reporter:
    """Train a small job, with these requests from its start on. stop_at: it is paused after this step."""
    document = {
        "name": "profiled",
        "model": {"name": "mlp", "init_args": {"hidden": [8]}},
        "data": {"name": "digits", "batch_size": 100},
        "train": {"epochs": 1},
    } | changes
    launch, reporter = launch_of(document), Reporter(stop_at)
    with opened(str(root)) as folders:
        delivery = ProfileDelivery(launch, folders, reporter, 0)  # type: ignore[arg-type]
        delivery._publish = lambda *_: "not published: there is no MLflow here"  # type: ignore[method-assign]
        asked = Profiling(delivery)
        for each in requests:
            asked.request(each)
        assembly = build(0, 1, launch)
        with suppress(StopRequested), single_process_group():
            fit(assembly, launch, folders, reporter, rank_context(0, 1), profiling=asked)  # type: ignore[arg-type]
        asked.close(60)
    return reporter


def test_steps_of_a_job_are_profiled_after_a_first_one_that_is_counted(tmp_path: Path) -> None:
    answers = trained(tmp_path, [request(1, steps=3), request(2)]).answers
    summary = answers[1].summary

    assert summary is not None
    assert (summary.steps, summary.first_step) == (3, 2)
    assert answers[1].trace == "profile/step-2-rank-0.json.gz"
    assert (tmp_path / "artifacts" / answers[1].trace).stat().st_size == answers[1].trace_bytes
    assert answers[1].notes == ["not published: there is no MLflow here"]
    assert answers[2].problem == "Another profile of this rank is not finished yet."


def test_with_accumulation_it_begins_and_ends_with_an_optimizer_step(tmp_path: Path) -> None:
    answer = trained(tmp_path, [request(1, steps=1)], train={"epochs": 1, "accumulate": 4}).answers[1]

    assert answer.summary is not None
    assert answer.summary.steps == 4


def test_a_profile_ends_with_its_epoch_and_says_so(tmp_path: Path) -> None:
    answer = trained(tmp_path, [request(1)]).answers[1]

    assert answer.summary is not None
    assert answer.notes[0] == f"Ended after {answer.summary.steps} steps, with the epoch."


def test_a_profile_holds_as_many_steps_as_fit_in_a_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling, "MOST_EVENTS", 1)

    answer = trained(tmp_path, [request(1)]).answers[1]

    assert answer.summary is not None
    assert answer.summary.steps == 1
    assert answer.notes[0] == "Ended after 1 step: a trace holds 1 events."


def test_a_profiler_that_fails_is_an_answer_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUPTI is not here")

    monkeypatch.setattr(profiling, "ProfilerSession", fails)

    reporter = trained(tmp_path, [request(1)])

    assert reporter.answers[1].problem == "The profile failed, and training continues: CUPTI is not here."
    assert "val/accuracy" in reporter.metrics


def test_a_job_that_is_paused_meanwhile_stops_at_once_and_says_so(tmp_path: Path) -> None:
    reporter = trained(tmp_path, [request(1)], stop_at=5)

    assert reporter.answers[1].problem == "Training was stopped before the profile was complete."
    assert [5 < fact["step"] <= 6 + MOST_WITHOUT for fact in reporter.checkpoints] == [True]
    assert not torch.autograd.profiler._is_profiler_enabled


def test_a_profile_that_training_leaves_no_time_for_is_answered(tmp_path: Path) -> None:
    answer = trained(tmp_path, [request(1)], data={"name": "digits", "batch_size": 1400}).answers[1]

    assert answer.problem == "Training ended before the profile could begin."
