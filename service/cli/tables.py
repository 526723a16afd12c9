"""Tables for the terminal: jobs, attempts, checkpoints, statistics, hosts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any

from rich.table import Column, Table
from rich.text import Text

from syncnorm.service.cli.formatting import age, duration, local_time, number, progress, took
from syncnorm.service.cli.selection import by_short_id

Json = Mapping[str, Any]
COLORS = {"succeeded": "green", "failed": "red", "cancelled": "yellow", "running": "cyan", "queued": "dim"}
_WIDE = 160
_SHORTEST = {"name": 12, "owner": 5}
"""Columns that get shorter on a narrow terminal, the first one first, and how short at most."""
_MOST_METRICS = 3


def state_text(state: str) -> Text:
    return Text(state, style=COLORS.get(state, ""))


def _workers_cell(job: Json) -> str:
    wanted, used = job.get("workers") or job["spec"]["resources"]["workers"], job["world_size"]
    return str(wanted) if used in (None, wanted) else f"{used} of {wanted}"


@dataclass(frozen=True)
class _JobColumn:
    """A column of `ls`, shown on terminals of at least this width."""

    title: str
    cell: Callable[[Json], str | Text]
    from_width: int = 0


_JOB_COLUMNS = (
    _JobColumn("name", lambda job: job["name"]),
    _JobColumn("state", lambda job: state_text(job["state"])),
    _JobColumn("owner", lambda job: job["owner"]),
    _JobColumn("progress", lambda job: progress(job["progress"])),
    _JobColumn("age", lambda job: age(job["created_at"])),
    _JobColumn("took", took, 95),
    _JobColumn("norm", lambda job: job["norm"], 110),
    _JobColumn("workers", _workers_cell, 125),
    _JobColumn("priority", lambda job: str(job["priority"]), 135),
    _JobColumn("project", lambda job: job["project"], 165),
    _JobColumn("created", lambda job: local_time(job["created_at"]), 195),
)


def jobs_table(jobs: Sequence[Json], width: int) -> Table:
    """A row for each job, as wide as fits. Ids are never cut in the middle: what is shown identifies the job."""
    columns = [column for column in _JOB_COLUMNS if width >= column.from_width]
    ids = {job["id"]: job["id"] for job in jobs} if width >= _WIDE else by_short_id(jobs)
    rows = [[Text(ids[job["id"]]), *(_text(column.cell(job)) for column in columns)] for job in jobs]
    titles = ["id", *(column.title for column in columns)]
    _shorten(rows, titles, width)
    table = Table(*(Column(title, no_wrap=True) for title in titles), box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    return table


def _text(cell: str | Text) -> Text:
    return cell if isinstance(cell, Text) else Text(cell)


def _shorten(rows: Sequence[list[Text]], titles: Sequence[str], width: int) -> None:
    """Names, and if need be owners, take the width that the other columns leave."""
    widths = {title: max([len(title), *(row[at].cell_len for row in rows)]) for at, title in enumerate(titles)}
    for title, least in _SHORTEST.items():
        excess = sum(widths.values()) + 2 * (len(widths) - 1) - width
        widths[title] = max(widths[title] - max(excess, 0), least)
        for row in rows:
            row[titles.index(title)].truncate(widths[title], overflow="ellipsis")


def attempts_table(attempts: Iterable[Json]) -> Table:
    table = Table("attempt", "outcome", "step", "phases", "ranks", "why", box=None)
    for one in attempts:
        table.add_row(
            str(one["number"]),
            one["outcome"] or one["phase"] or "waits for Ray",
            str(one["step"]),
            ", ".join(phase_times(one)),
            "; ".join(where(one["placement"])),
            ": ".join(filter(None, (one["reason"], one["message"]))),
        )
    return table


def phase_times(attempt: Json) -> Iterator[str]:
    """How long each phase of an attempt took; of a running attempt, the finished ones."""
    marks = [("submit", attempt["created_at"]), *attempt["phases"].items()]
    if attempt["ended_at"] is not None:
        marks.append(("", attempt["ended_at"]))
    for (phase, began), (_, ended) in pairwise(marks):
        if phase != "done":
            took = datetime.fromisoformat(ended) - datetime.fromisoformat(began)
            yield f"{phase.replace('_', ' ')} {duration(took.total_seconds())}"


def where(placement: Sequence[Json]) -> Iterator[str]:
    """`host: ranks`, with the model of their GPUs."""
    hosts = defaultdict(list)
    for place in placement:
        hosts[place["host"], place["gpu"]].append(place["rank"])
    for (host, gpu), ranks in hosts.items():
        yield f"{host}: {', '.join(map(str, ranks))}" + (f" ({gpu})" if gpu else "")


def checkpoints_table(checkpoints: Iterable[Json]) -> Table:
    """With the metrics of validation, or where there are none of training."""
    found = list(checkpoints)
    names = sorted({name for one in found for name in one.get("metrics") or ()})
    shown = [name for name in names if name.startswith("val")] or names
    columns = ("step", "epochs", "", *shown[:_MOST_METRICS], "attempt", "MiB", "at")
    table = Table(*columns, Column("path", overflow="fold"), box=None)
    for one in found:
        metrics = one.get("metrics") or {}
        scores = [number(metrics[name]) if name in metrics else "" for name in shown[:_MOST_METRICS]]
        size, at, best = f"{one['size_bytes'] / 2**20:.1f}", local_time(one["at"]), "best" if one.get("best") else ""
        table.add_row(str(one["step"]), str(one["epoch"]), best, *scores, str(one["attempt"]), size, at, one["path"])
    return table


def files_table(files: Iterable[Json]) -> Table:
    table = Table("path", "kind", "bytes", Column("sha256", overflow="fold"), box=None)
    for one in files:
        table.add_row(one["path"], one["kind"], str(one["size_bytes"]), one["digest"])
    return table


def statistics_table(layers: Iterable[Json]) -> Table:
    """The latest record of each layer: means over channels of |mean| and variance, running and population, and how far
    the running means are from the last batch's and from the population's."""
    running, population = ("running_mean_abs", "running_var_mean", "drift"), ("mean_abs", "var_mean", "drift")
    table = Table("layer", "step", "running |mean|", "var", "drift", "population |mean|", "var", "drift", box=None)
    for layer in layers:
        last, whole = layer["points"][-1] if layer["points"] else {}, layer["population"] or {}
        values = [*(last.get(name) for name in running), *(whole.get(name) for name in population)]
        cells = ["" if value is None else number(value, ".4g") for value in values]
        table.add_row(layer["layer"], str(last.get("step", "")), *cells)
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
