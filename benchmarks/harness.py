"""Runs competitors in turn, round after round, on several gloo workers, and says how they compare."""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

RESULTS = Path(__file__).resolve().parent / "results"

# What a worker builds before measuring: one step of each competitor, by name, in the same order on every worker. A step
# that returns a float has measured itself.
Build = Callable[..., Mapping[str, Callable[[], object]]]


@dataclass(frozen=True)
class Row:
    """One competitor in one setting: seconds of its fastest and its median round, and both against the peer's."""

    setting: str
    competitor: str
    minimum_s: float
    median_s: float
    ratio_of_minima: float
    ratio_of_medians: float
    goal: float | None = None


@dataclass(frozen=True)
class Table:
    """The rows of one benchmark, all against the same peer."""

    name: str
    peer: str
    rows: list[Row]
    workers: int = 2
    measured_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    torch: str = torch.__version__
    load_average: tuple[float, float, float] = field(default_factory=os.getloadavg)

    def print(self) -> None:
        width = max(len(row.setting) + len(row.competitor) for row in self.rows) + 2
        print(f"\n{self.name}: ratio to {self.peer}, {self.workers} workers, load {self.load_average[0]:.1f}")
        for row in self.rows:
            goal = (
                ""
                if row.goal is None
                else f"  goal {row.goal:.2f} {'met' if row.ratio_of_minima <= row.goal else 'missed'}"
            )
            print(
                f"  {row.setting}  {row.competitor}".ljust(width + 2),
                f"min {row.minimum_s * 1e3:8.3f} ms {row.ratio_of_minima:6.2f}x   "
                f"median {row.median_s * 1e3:8.3f} ms {row.ratio_of_medians:6.2f}x{goal}",
            )

    def write(self) -> None:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{self.name}.json").write_text(json.dumps(asdict(self), indent=2) + "\n")


def compare(
    build: Build,
    settings: Mapping[str, tuple[Any, ...]],
    peer: str,
    *,
    goals: Mapping[tuple[str, str], float],
    rounds: int,
    workers: int = 2,
) -> list[Row]:
    """Rows of every competitor that `build(*setting)` makes, on `workers`, against `peer`.

    Each round runs every competitor once, so that a change in the machine's load meets all of them.
    """
    rows = []
    for name, arguments in settings.items():
        times = _on_workers(build, arguments, rounds, workers)
        best, median = min(times[peer]), statistics.median(times[peer])
        for competitor, seconds in times.items():
            ours, ours_median = min(seconds), statistics.median(seconds)
            ratios = (ours / best, ours_median / median)
            rows.append(Row(name, competitor, ours, ours_median, *ratios, goals.get((name, competitor))))
    return rows


ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
}
"""Workers have a thread each, as those of one CPU are started: torch's own setting is one thread's, and a competitor
may run in several. What is freed stays with the process: a competitor that gets its output from the system again each
time takes three times as long, and which one that is depends on the order of their tensors in memory."""


def _on_workers(build: Build, arguments: tuple[Any, ...], rounds: int, workers: int) -> dict[str, list[float]]:
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, ENVIRONMENT):
        mp.spawn(_worker, (workers, folder, build, arguments, rounds), workers)
        found: dict[str, list[float]] = json.loads((Path(folder) / "times.json").read_text())
    return found


def _worker(rank: int, workers: int, folder: str, build: Build, arguments: tuple[Any, ...], rounds: int) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    torch.manual_seed(rank)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=workers)
    steps = build(*arguments)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 3):
        for name, step in steps.items():
            dist.barrier()
            started = time.perf_counter()
            measured = step()
            if number >= 3:  # the first rounds compile and allocate
                times[name].append(measured if isinstance(measured, float) else time.perf_counter() - started)
    if rank == 0:
        (Path(folder) / "times.json").write_text(json.dumps(times))
    dist.barrier()
    dist.destroy_process_group()
