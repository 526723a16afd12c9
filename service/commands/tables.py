"""Tables of the command line: jobs, attempts, checkpoints, statistics, hosts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from typing import Any

from rich.markup import escape
from rich.table import Column, Table

Json = Mapping[str, Any]
COLORS = {"succeeded": "green", "failed": "red", "cancelled": "yellow", "running": "cyan", "queued": "dim"}
_ID_CHARACTERS = 30


def duration(seconds: float) -> str:
    """Minutes and seconds, as 1:05; of hours 61:05."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


def jobs_table(jobs: Iterable[Json]) -> Table:
    """A row a job. Ids are never cut: they are there to be copied."""
    identity = Column("id", no_wrap=True, min_width=_ID_CHARACTERS)
    table = Table(identity, "name", "project", "state", "norm", "workers", "progress", "created", box=None)
    for job in jobs:
        table.add_row(
            job["id"],
            escape(job["name"]),
            escape(job["project"]),
            f"[{COLORS.get(job['state'], 'white')}]{job['state']}[/]",
            job["norm"],
            _workers_cell(job),
            _progress_cell(job["progress"]),
            job["created_at"][:19],
        )
    return table


def attempts_table(attempts: Iterable[Json]) -> Table:
    table = Table("attempt", "outcome", "step", "phases", "ranks", "why", box=None)
    for one in attempts:
        table.add_row(
            str(one["number"]),
            one["outcome"] or one["phase"] or "waits for Ray",
            str(one["step"]),
            ", ".join(phase_times(one)),
            "; ".join(where(one["placement"])),
            escape(": ".join(filter(None, (one["reason"], one["message"])))),
        )
    return table


def phase_times(attempt: Json) -> Iterator[str]:
    """How long each phase of an attempt took; of one under way, those that are over."""
    marks = [("submit", attempt["created_at"]), *attempt["phases"].items()]
    if attempt["ended_at"] is not None:
        marks.append(("", attempt["ended_at"]))
    for (phase, began), (_, ended) in pairwise(marks):
        if phase != "done":
            took = datetime.fromisoformat(ended) - datetime.fromisoformat(began)
            yield f"{phase.replace('_', ' ')} {duration(took.total_seconds())}"


def where(placement: Sequence[Json]) -> Iterator[str]:
    """`host: its ranks`, with the model of their GPUs."""
    hosts = defaultdict(list)
    for place in placement:
        hosts[place["host"], place["gpu"]].append(place["rank"])
    for (host, gpu), ranks in hosts.items():
        yield f"{escape(host)}: {', '.join(map(str, ranks))}" + (f" ({escape(gpu)})" if gpu else "")


def checkpoints_table(checkpoints: Iterable[Json]) -> Table:
    table = Table("step", "epochs", "attempt", "MiB", "at", Column("path", overflow="fold"), box=None)
    for one in checkpoints:
        size = f"{one['size_bytes'] / 2**20:.1f}"
        table.add_row(
            str(one["step"]), str(one["epoch"]), str(one["attempt"]), size, one["at"][:19], escape(one["path"])
        )
    return table


def statistics_table(layers: Iterable[Json]) -> Table:
    """The last point of each layer: means over channels of |mean| and variance, running and of the population; how far
    the running means are from the last batch's, and from the population's."""
    running, population = ("running_mean_abs", "running_var_mean", "drift"), ("mean_abs", "var_mean", "drift")
    table = Table("layer", "step", "running |mean|", "var", "drift", "population |mean|", "var", "drift", box=None)
    for layer in layers:
        last, whole = layer["points"][-1] if layer["points"] else {}, layer["population"] or {}
        values = [*(last.get(name) for name in running), *(whole.get(name) for name in population)]
        cells = ["" if value is None else f"{value:.4g}" for value in values]
        table.add_row(escape(layer["layer"]), str(last.get("step", "")), *cells)
    return table


def nodes_table(nodes: Iterable[Json]) -> Table:
    table = Table("host", "CPUs free", "GPUs free", Column("node", no_wrap=True), box=None)
    for node in nodes:
        table.add_row(
            node["address"] or "",
            f"{node['free_cpus']:g} of {node['cpus']:g}",
            f"{node['free_gpus']:g} of {node['gpus']:g}",
            node["node_id"],
        )
    return table


def _workers_cell(job: Json) -> str:
    wanted, used = job.get("workers") or job["spec"]["resources"]["workers"], job["world_size"]
    return str(wanted) if used in (None, wanted) else f"{used} of {wanted}"


def _progress_cell(progress: Json) -> str:
    if progress["percent"] is None:
        return ""
    left = "" if not progress["eta_s"] else f"  {duration(progress['eta_s'])} left"
    return f"{progress['percent']:.0f} %{left}"
