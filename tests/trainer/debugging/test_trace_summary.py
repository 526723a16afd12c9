"""What a trace says of one step, by hand-made traces whose answers are known."""

from __future__ import annotations

from typing import Any

import pytest

from syncnorm.trainer.debugging.trace_summary import Marks, summarize

TRAINS, BACKWARD = 7, 8
"""Threads. On a GPU, backward has one of its own."""


def event(
    name: str, start: float, lasts: float, *, tid: int = TRAINS, cat: str = "cpu_op", **args: Any
) -> dict[str, Any]:
    spaced = {key.replace("_", " "): value for key, value in args.items()}
    return {"ph": "X", "cat": cat, "name": name, "ts": start, "dur": lasts, "pid": 1, "tid": tid, "args": spaced}


def node(
    number: int, start: float, lasts: float, *, tid: int = TRAINS, forward_thread: int = 1
) -> list[dict[str, Any]]:
    """A node of backward, as the engine shows it: 1 us of its own around it."""
    args = {"Sequence_number": number, "Fwd_thread_id": forward_thread}
    outer = event("autograd::engine::evaluate_function: X", start - 1, lasts + 2, tid=tid, **args)
    return [outer, event("X", start, lasts, tid=tid, **args)]


def step(number: int, start: float, lasts: float) -> dict[str, Any]:
    return event(f"syncnorm::step {number}", start, lasts, cat="user_annotation")


def layers(found: dict[str, Any]) -> dict[str, tuple[float, float, float]]:
    return {one["path"]: (one["forward_ms"], one["backward_ms"], one["exchange_ms"]) for one in found["layers"]}


def whole_step(at: float) -> list[dict[str, Any]]:
    return [
        step(int(at), at, 10_000),
        event("norm::forward a", at + 1000, 2000),
        event("norm::exchange", at + 1500, 1000),
        event("aten::conv", at + 4000, 1000),
        *node(5 + int(at), at + 6000, 3000),
        event("norm::exchange", at + 7000, 500),
        *node(6 + int(at), at + 9100, 500),
    ]


TWO_STEPS = [*whole_step(0), *whole_step(15_000)]


def test_forward_backward_and_exchanges_of_a_layer_are_those_of_one_step() -> None:
    found = summarize(TWO_STEPS, Marks([("a", 5, 6), ("a", 15_005, 15_006)]))

    assert layers(found) == {"a": (2.0, 3.0, 1.5)}
    assert (found["forward_ms"], found["backward_ms"], found["norm_share"]) == (2.0, 3.0, 0.5)
    assert (found["exchange_ms"], found["exchange_share"]) == (1.5, 0.15)
    assert (found["steps"], found["step_ms"], found["between_ms"]) == (2, 10.0, 5.0)


def test_operators_have_their_own_time_only_and_add_up_to_the_step() -> None:
    found = summarize(TWO_STEPS, Marks([]))
    own = {one["name"]: (one["calls"], one["self_ms"]) for one in found["operators"]}

    assert own["norm::forward"] == (1.0, 1.0)
    assert own["norm::exchange"] == (2.0, 1.5)
    assert own["aten::conv"] == (1.0, 1.0)
    assert own["X"] == (2.0, 3.0)
    assert sum(took for _, took in own.values()) == pytest.approx(10.0)


def test_nodes_of_other_layers_and_of_other_threads_do_not_count() -> None:
    others = [*node(5, 9700, 50, forward_thread=2), *node(7, 9800, 50)]

    found = summarize([*TWO_STEPS, *others], Marks([("a", 5, 6), ("a", 15_005, 15_006)]))

    assert layers(found)["a"][1] == 3.0


def test_a_layer_within_another_is_counted_once() -> None:
    events = [step(0, 0, 10_000), event("norm::forward a", 1000, 4000), event("norm::forward a.inner", 2000, 1000)]

    found = summarize(events, Marks([]))

    assert layers(found) == {"a": (4.0, 0.0, 0.0)}


def test_what_happens_between_steps_does_not_count() -> None:
    outside = event("norm::forward a", 11_000, 2000)

    assert summarize([*TWO_STEPS, outside], Marks([])) == summarize(TWO_STEPS, Marks([]))


def launched(number: int, at: float, lasts: float, name: str, tid: int) -> list[dict[str, Any]]:
    return [
        event("cudaLaunchKernel", at, 5, tid=tid, cat="cuda_runtime", correlation=number),
        event(name, at + 5000, lasts, tid=99, cat="kernel", correlation=number),
    ]


def test_on_a_gpu_the_time_is_that_of_the_kernels_that_a_layer_launched() -> None:
    events = [
        step(0, 0, 20_000),
        event("norm::forward a", 1000, 100),
        event("norm::exchange", 1040, 20),
        *launched(1, 1010, 700, "welford", TRAINS),
        *launched(2, 1050, 300, "nccl", TRAINS),
        *launched(3, 1500, 900, "conv", TRAINS),
        *node(5, 3000, 100, tid=BACKWARD),
        *launched(4, 3050, 400, "welford_backward", BACKWARD),
    ]

    found = summarize(events, Marks([("a", 5, 6)], on_device=True))

    assert layers(found) == {"a": (1.0, 0.4, 0.3)}
    assert [(one["name"], one["self_ms"]) for one in found["operators"]][:2] == [("conv", 0.9), ("welford", 0.7)]
    assert found["device"] == "cuda"


def test_the_longest_layers_are_listed_and_the_others_are_in_the_sums() -> None:
    events = [step(0, 0, 10_000), *(event(f"norm::forward {n}", 1000 * n, 100 * n) for n in range(1, 6))]

    found = summarize(events, Marks([]), most_layers=2)

    assert [one["path"] for one in found["layers"]] == ["5", "4"]
    assert (found["layers_left_out"], found["forward_ms"]) == (3, 1.5)


def test_a_trace_without_a_whole_step_is_refused() -> None:
    with pytest.raises(ValueError, match="no whole step"):
        summarize([event("aten::conv", 0, 1)], Marks([]))
