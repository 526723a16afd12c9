"""The page of measured figures, from benchmarks/results/*.json."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from docs.generate.markdown import generated, table

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks/results"
INTRO = """
Here you find every figure that has a goal, next to it. Each is a ratio of times: ours to that of a peer, measured in
turn in the same run, so it means the same on your machine. Below 1 we are faster. To measure one or all of them
yourself, run for example

```
python -m benchmarks norm_layer
make bench
```

"Best" compares the fastest rounds, "median" the middle ones. A goal is for the fastest, because other programs on the
machine only ever make a round slower. "Earlier" is the ratio of the fastest rounds on 2026-11-21.
"""
GROWTH = """
The pictures show what more of something costs, on two cores: ranks, layers, jobs, or followers of one job. Both axes
are logarithmic. A line that is flat costs you nothing as you grow, and one along the diagonal twice as much for twice
as much.
"""


class Benchmark(NamedTuple):
    """ours: the competitor that has the goals. limit: what keeps it from being faster."""

    name: str
    title: str
    ours: str
    limit: str


BENCHMARKS = (
    Benchmark(
        "norm_layer",
        "A synchronized layer, two workers",
        "ours, shared memory",
        "large tensors move at the speed of a copy, and small ones wait for the slower of the two workers. See "
        "[How synchronized statistics are computed](../explanation/synchronized-statistics.md#performance-on-cpus).",
    ),
    Benchmark(
        "norm_resnet_step",
        "A training step of a ResNet with 21 such layers",
        "ours, shared memory",
        "the convolutions, which are the same for both.",
    ),
    Benchmark(
        "channels_last",
        "Group, layer and instance normalization in channels_last",
        "channels_last, ours",
        "both read each tensor twice. A group of contiguous numbers is still in the cache the second time, a whole "
        "sample in channels_last often is not. See [Normalizations](normalizations.md).",
    ),
    Benchmark(
        "activation_memory",
        "A step with `train.activation_memory: lean`",
        "save_memory",
        "activations that are computed a second time, where a tensor less is written.",
    ),
    Benchmark(
        "accumulation",
        "Micro-batches that equal one batch",
        "as one batch",
        "activations wait in the host's memory, so each is copied twice. See [What is trained](what-is-trained.md).",
    ),
    Benchmark(
        "trainer",
        "A training step of the service, two workers",
        "trainer",
        "Lightning's own hooks, and for networks of large matrices, such as the mlp, a look at each gradient for NaN "
        "and infinity. See [What the trainer costs](../explanation/cost-of-the-trainer.md).",
    ),
    Benchmark(
        "first_step",
        "From submit to the first step",
        "job of the service",
        "for a [warm job](../explanation/warm-start.md) Ray's own agreement on a job and its workers, and the building "
        "of your network and your data.",
    ),
    Benchmark(
        "norm_gpu",
        "A training step of ResNet-50 on a GPU",
        "ours",
        "the host, which issues six launches and two exchanges for each layer. See "
        "[Performance on a GPU](../explanation/synchronized-statistics.md#performance-on-a-gpu).",
    ),
)
_WITHOUT_GOALS = {"norm_gpu": "ResNet-50 step"}
"""Benchmarks whose rows are shown by the beginning of their setting, as they have no goals."""


def performance() -> str:
    head = generated("Performance", "benchmarks/results", INTRO)
    parts = [part for benchmark in BENCHMARKS for part in _section(benchmark)]
    return "\n\n".join([head, *parts, *_growth()])


def _section(benchmark: Benchmark) -> Iterator[str]:
    measured, earlier = _results(benchmark.name), _results("earlier")["ratio_of_minima"].get(benchmark.name, {})
    yield f"## {benchmark.title}"
    yield f"Peer: {measured['peer']}. Measured on {measured['measured_at'][:10]} with torch {measured['torch']}."
    columns = ["", "best", "median", "goal", "", *(["earlier"] if earlier else [])]
    yield table(columns, [_row(row, earlier) for row in measured["rows"] if _is_shown(row, benchmark)])
    yield f"What limits it: {benchmark.limit}"


def _is_shown(row: Mapping[str, Any], benchmark: Benchmark) -> bool:
    if row["competitor"] != benchmark.ours:
        return False
    start = _WITHOUT_GOALS.get(benchmark.name)
    return row["goal"] is not None if start is None else row["setting"].startswith(start)


def _row(row: Mapping[str, Any], earlier: Mapping[str, float]) -> Sequence[str]:
    best, goal, before = row["ratio_of_minima"], row["goal"], earlier.get(row["setting"])
    met = "" if goal is None else "met" if best <= goal else "missed"
    ratios = [f"{best:.2f}x", f"{row['ratio_of_medians']:.2f}x"]
    cells = [row["setting"], *ratios, "" if goal is None else f"{goal:g}", met]
    return [*cells, *([] if not earlier else [f"{before:.2f}x" if before else ""])]


def _growth() -> Iterator[str]:
    measured = _results("growth")
    yield "## As the work grows"
    yield f"{GROWTH.strip()}\n\nMeasured on {measured['measured_at'][:10]} by `python -m benchmarks growth`."
    for curve in measured["curves"]:
        yield f"### {curve['title']}"
        yield f"![{curve['title']}, in {curve['unit']}, over {curve['over']}](growth-{curve['name']}.png)"
        amounts = [f"{amount:,}" for amount in curve["amounts"]]
        rows = [[line, *(f"{value:.3g}" for value in values)] for line, values in curve["lines"].items()]
        yield table([f"{curve['unit']}, by {curve['over']}", *amounts], rows)


def _results(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
