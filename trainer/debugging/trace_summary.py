"""What a trace of torch.profiler says of one step: normalization layers, exchanges, operators.

Reads the Chrome trace alone, and imports nothing but the standard library: a process of its own computes this, so that
the one that trains is not kept waiting (trace_file.py). Times in the trace are microseconds.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

STEP, FORWARD, EXCHANGE = "syncnorm::step ", "norm::forward ", "norm::exchange"
"""Names of ranges, the first two with a number or a path behind. EXCHANGE: as in norm.distributed.timing."""
_HOST = ("cpu_op", "user_annotation")
_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
_LAUNCHES = ("cuda_runtime", "cuda_driver")
_LONGEST_NAME = 255


@dataclass(frozen=True)
class Marks:
    """What the trace itself does not say of the forward of a layer: the numbers of the nodes that it made for backward,
    first to last, the last one excluded. on_device: whether kernels are counted, not the time of the host."""

    nodes: Sequence[tuple[str, int, int]]
    on_device: bool = False


@dataclass(frozen=True)
class _Span:
    """A range on one thread. what: "forward", "backward" or "exchange"."""

    what: str
    path: str
    thread: Any
    start: float
    end: float


@dataclass
class _Layer:
    forward: float = 0.0
    backward: float = 0.0
    exchange: float = 0.0

    @property
    def total(self) -> float:
        return self.forward + self.backward


@dataclass
class _Threads:
    """The complete events of the host within steps, by thread and in order: an outer one before those in it."""

    events: dict[Any, list[Mapping[str, Any]]] = field(default_factory=lambda: defaultdict(list))


def summarize(
    events: Iterable[Mapping[str, Any]], marks: Marks, *, most_layers: int = 200, most_operators: int = 20
) -> dict[str, Any]:
    """The fields of contract.profile.ProfileSummary that a trace tells. Raises: ValueError if no step is whole."""
    complete = [event for event in events if event.get("ph") == "X"]
    steps = sorted((e["ts"], e["ts"] + e["dur"]) for e in _of(complete, _HOST) if e["name"].startswith(STEP))
    if not steps:
        raise ValueError("the trace holds no whole step")
    threads = _threads(complete, steps)
    launched = _launched(complete, steps) if marks.on_device else None
    layers, exchange = _layers(list(_spans(threads, marks)), launched)
    operators = _kernels(launched) if launched is not None else _operators(threads)
    listed = sorted(layers.items(), key=lambda item: -item[1].total)
    forward, backward = sum(one.forward for one in layers.values()), sum(one.backward for one in layers.values())
    scale = _Scale(len(steps), sum(end - start for start, end in steps))
    between = steps[-1][1] - steps[0][0] - scale.busy
    return {
        "device": "cuda" if marks.on_device else "cpu",
        "steps": len(steps),
        "step_ms": scale.ms(scale.busy),
        "between_ms": round(between / max(1, len(steps) - 1) / 1000, 6),
        "forward_ms": scale.ms(forward),
        "backward_ms": scale.ms(backward),
        "norm_share": scale.share(forward + backward),
        "exchange_ms": scale.ms(exchange),
        "exchange_share": scale.share(exchange),
        "layers": [_layer_row(path, one, scale) for path, one in listed[:most_layers]],
        "layers_left_out": max(0, len(listed) - most_layers),
        "operators": [
            {"name": name, "calls": round(calls / len(steps), 3), "self_ms": scale.ms(took), "share": scale.share(took)}
            for name, calls, took in sorted(operators, key=lambda one: -one[2])[:most_operators]
        ],
    }


@dataclass(frozen=True)
class _Scale:
    """From microseconds of all steps to those of one. busy: what all take."""

    steps: int
    busy: float

    def ms(self, total: float) -> float:
        return round(total / self.steps / 1000, 6)

    def share(self, total: float) -> float:
        return round(total / self.busy, 6) if self.busy else 0.0


def _layer_row(path: str, layer: _Layer, scale: _Scale) -> dict[str, Any]:
    return {
        "path": path[:_LONGEST_NAME],
        "forward_ms": scale.ms(layer.forward),
        "backward_ms": scale.ms(layer.backward),
        "exchange_ms": scale.ms(layer.exchange),
        "share": scale.share(layer.total),
    }


def _of(events: Iterable[Mapping[str, Any]], categories: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    return (event for event in events if event.get("cat") in categories)


def _within(steps: Sequence[tuple[float, float]]) -> Callable[[float], bool]:
    starts = [start for start, _ in steps]

    def is_within(at: float) -> bool:
        index = bisect_right(starts, at) - 1
        return index >= 0 and at < steps[index][1]

    return is_within


def _threads(complete: Sequence[Mapping[str, Any]], steps: Sequence[tuple[float, float]]) -> _Threads:
    """Of the threads that train: that of the steps, and those that run nodes of backward."""
    is_within, found = _within(steps), _Threads()
    training = {
        e["tid"] for e in _of(complete, _HOST) if e["name"].startswith((STEP, "autograd::engine::evaluate_function"))
    }
    for event in _of(complete, _HOST):
        if event["tid"] in training and is_within(event["ts"]):
            found.events[event["tid"]].append(event)
    for events in found.events.values():
        events.sort(key=lambda event: (event["ts"], -event["dur"]))
    return found


def _spans(threads: _Threads, marks: Marks) -> Iterator[_Span]:
    """Forward and backward of layers, none within another, and exchanges."""
    layer_of = {number: path for path, first, last in marks.nodes for number in range(first, last)}
    forward_thread = _forward_thread(threads, layer_of)
    for thread, events in threads.events.items():
        covered = 0.0  # until when the last span of a layer takes
        for event in events:
            name, start, args = event["name"], event["ts"], event.get("args") or {}
            end = start + event["dur"]
            if name == EXCHANGE:
                yield _Span("exchange", "", thread, start, end)
            elif start >= covered and name.startswith(FORWARD):
                covered = end
                yield _Span("forward", name.removeprefix(FORWARD), thread, start, end)
            elif start >= covered and args.get("Fwd thread id", 0) and not name.startswith("autograd::engine"):
                path = layer_of.get(args.get("Sequence number", -1))
                if path is not None and args["Fwd thread id"] == forward_thread:
                    covered = end
                    yield _Span("backward", path, thread, start, end)


def _forward_thread(threads: _Threads, layer_of: Mapping[int, str]) -> int | None:
    """The number of the thread that ran most forwards: each thread counts nodes of its own."""
    counts: dict[int, int] = defaultdict(int)
    for events in threads.events.values():
        for event in events:
            args = event.get("args") or {}
            if args.get("Fwd thread id", 0) and args.get("Sequence number", -1) in layer_of:
                counts[args["Fwd thread id"]] += 1
    return max(counts, key=lambda one: counts[one], default=None)


@dataclass(frozen=True)
class _Launched:
    """kernels: (name, microseconds) by the thread that launched them, at these times, in order."""

    at: dict[Any, list[float]]
    kernels: dict[Any, list[tuple[str, float]]]

    def took(self, thread: Any, start: float, end: float) -> float:
        at = self.at.get(thread, [])
        first, last = bisect_right(at, start), bisect_right(at, end)
        return sum(took for _, took in self.kernels.get(thread, [])[first:last])


def _launched(complete: Sequence[Mapping[str, Any]], steps: Sequence[tuple[float, float]]) -> _Launched:
    is_within = _within(steps)
    launches = {
        e["args"]["correlation"]: (e["tid"], e["ts"])
        for e in _of(complete, _LAUNCHES)
        if "correlation" in e.get("args", {}) and is_within(e["ts"])
    }
    found = defaultdict(list)
    for event in _of(complete, _DEVICE):
        thread, at = launches.get(event.get("args", {}).get("correlation"), (None, 0.0))
        if thread is not None:
            found[thread].append((at, event["name"], event["dur"]))
    for kernels in found.values():
        kernels.sort()
    return _Launched(
        {thread: [at for at, _, _ in kernels] for thread, kernels in found.items()},
        {thread: [(name, took) for _, name, took in kernels] for thread, kernels in found.items()},
    )


def _layers(spans: list[_Span], launched: _Launched | None) -> tuple[dict[str, _Layer], float]:
    """Each layer, and all exchanges, those outside of layers included."""
    layers: dict[str, _Layer] = defaultdict(_Layer)
    total = 0.0
    current: dict[Any, _Span] = {}
    for span in spans:
        took = span.end - span.start if launched is None else launched.took(span.thread, span.start, span.end)
        if span.what == "exchange":
            total += took
            around = current.get(span.thread)
            if around is not None and span.start < around.end:
                layers[around.path].exchange += took
        else:
            current[span.thread] = span
            setattr(layers[span.path], span.what, getattr(layers[span.path], span.what) + took)
    return layers, total


def _operators(threads: _Threads) -> Iterator[tuple[str, int, float]]:
    """(name, calls, microseconds without those of the events within it)."""
    calls: dict[str, int] = defaultdict(int)
    took: dict[str, float] = defaultdict(float)
    for events in threads.events.values():
        open_events: list[tuple[str, float]] = []
        for event in events:
            name, start, lasts = _shown(event["name"]), event["ts"], event["dur"]
            while open_events and open_events[-1][1] <= start:
                open_events.pop()
            if open_events:
                took[open_events[-1][0]] -= min(lasts, open_events[-1][1] - start)
            open_events.append((name, start + lasts))
            calls[name] += 1
            took[name] += lasts
    return ((name, calls[name], took[name]) for name in calls)


def _kernels(launched: _Launched) -> Iterator[tuple[str, int, float]]:
    calls: dict[str, int] = defaultdict(int)
    took: dict[str, float] = defaultdict(float)
    for kernels in launched.kernels.values():
        for name, lasts in kernels:
            calls[name[:_LONGEST_NAME]] += 1
            took[name[:_LONGEST_NAME]] += lasts
    return ((name, calls[name], took[name]) for name in calls)


def _shown(name: str) -> str:
    if name.startswith(STEP):
        return "outside of operators"
    return FORWARD.strip() if name.startswith(FORWARD) else name[:_LONGEST_NAME]
