"""`syncnorm profile`: where the time of a running job's steps goes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from syncnorm.service.cli.arguments import AsJson, Job
from syncnorm.service.cli.selection import job_id
from syncnorm.service.cli.terminal import TIMED_OUT, WRONG_USE, connect, err, fail, show_value
from syncnorm.service.client.client import Client
from syncnorm.trainer.contract.text import counted

Json = dict[str, Any]
app = typer.Typer()
_MOST_ROWS = 12


@app.command()
def profile(
    job: Job,
    *,
    seconds: Annotated[float, typer.Option(min=0.1, max=60, help="How long; it ends with a step.")] = 5,
    steps: Annotated[
        int | None, typer.Option(min=1, max=1000, help="End after so many steps, if that is sooner.")
    ] = None,
    ranks: Annotated[str, typer.Option(metavar="0,1|all", help="Which ranks, 16 at most.")] = "all",
    last: Annotated[bool, typer.Option("--last", help="Show the last profile, without making another one.")] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Save the trace here; of several ranks, with their numbers."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Profile some steps of a running job: what each normalization layer takes, and how long ranks wait for others."""
    wanted = _read_ranks(ranks)
    with connect() as client:
        one = job_id(client, job)
        if not last and sys.stderr.isatty():
            err.print(f"profiling {one} for {seconds:g} s …", style="dim")
        found = client.last_profile(one) if last else client.profile(one, seconds, steps=steps, ranks=wanted)
        if output is not None:
            _save(client, one, found, output)
    show_value(found, as_json, _report)
    if not found["items"] and not found["pending"]:
        raise typer.Exit(TIMED_OUT)


def _read_ranks(text: str) -> list[int] | None:
    try:
        return None if text == "all" else [int(part) for part in text.split(",")]
    except ValueError:
        fail(f"--ranks must be numbers such as 0,1, or all; got {text!r}.", WRONG_USE)


def _save(client: Client, job: str, found: Json, output: Path) -> None:
    traces = {each["rank"]: each["trace"] for each in found["items"] if each["trace"]}
    for rank, trace in traces.items():
        name = output.name if len(traces) == 1 else _with_rank(output.name, rank)
        saved = client.download(job, trace, output.with_name(name))
        err.print(f"saved {saved}", style="dim", soft_wrap=True)


def _with_rank(name: str, rank: int) -> str:
    """
    >>> _with_rank("trace.json.gz", 1)
    'trace-rank-1.json.gz'
    """
    stem, dot, rest = name.partition(".")
    return f"{stem}-rank-{rank}{dot}{rest}"


def _report(found: Json) -> RenderableType:
    parts: list[RenderableType] = []
    for each in found["items"]:
        parts += [*_of_rank(each), ""]
    for name, text in (("silent", "did not answer: stopped, or not reachable"), ("pending", "has not answered yet")):
        parts += [f"rank {rank} {text}." for rank in found[name]]
    return Group(*parts)


def _of_rank(each: Json) -> list[RenderableType]:
    summary = each["summary"]
    if summary is None:
        return [f"rank {each['rank']}: {each['problem']}", *each["notes"]]
    head = (
        f"rank {each['rank']}: {counted(summary['steps'], 'step')} of {summary['step_ms']:.2f} ms from step "
        f"{summary['first_step']}, and {summary['between_ms']:.2f} ms between them"
    )
    sums = (
        f"  normalization {summary['norm_share']:.1%} (forward {summary['forward_ms']:.2f} ms, backward "
        f"{summary['backward_ms']:.2f} ms), exchanges with other ranks {summary['exchange_share']:.1%}"
    )
    layers = _table("layer", ("forward ms", "backward ms", "exchange ms"), summary["layers"], _layer_row)
    operators = _table("operator", ("calls", "self ms"), summary["operators"], _operator_row)
    trace = f"  trace: {each['trace']} ({each['trace_bytes'] / 2**20:.1f} MiB)" if each["trace"] else "  no trace"
    return [Text(head, style="bold"), sums, *(f"  {note}" for note in each["notes"]), layers, operators, trace]


def _table(title: str, columns: tuple[str, ...], rows: list[Json], row: Callable[[Json], list[str]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(f"  {title}", overflow="ellipsis", no_wrap=True, max_width=52)
    for name in (*columns, "share"):
        table.add_column(name, justify="right")
    for each in rows[:_MOST_ROWS]:
        name, *numbers = row(each)
        table.add_row(Text(f"  {name}"), *numbers, f"{each['share']:.1%}")
    if len(rows) > _MOST_ROWS:
        table.add_row(f"  … {len(rows) - _MOST_ROWS} more: --json")
    return table


def _layer_row(each: Json) -> list[str]:
    return [each["path"], *(f"{each[name]:.3f}" for name in ("forward_ms", "backward_ms", "exchange_ms"))]


def _operator_row(each: Json) -> list[str]:
    return [each["name"], f"{each['calls']:g}", f"{each['self_ms']:.3f}"]
