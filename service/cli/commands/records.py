"""`syncnorm logs`, `events`, `attempts` and the other records of a job."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Annotated, Any

import typer

from syncnorm.service.cli.arguments import AsJson, Job
from syncnorm.service.cli.formatting import local_time
from syncnorm.service.cli.selection import job_id
from syncnorm.service.cli.tables import attempts_table, checkpoints_table, statistics_table
from syncnorm.service.cli.terminal import connect, fit, show_value

app = typer.Typer()


@app.command()
def logs(
    job: Job,
    *,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Keep printing until the job is finished.")] = False,
    rank: Annotated[int | None, typer.Option(help="Only this rank; -1 is the driver.")] = None,
    attempt: Annotated[int | None, typer.Option(help="Only this attempt.")] = None,
    q: Annotated[str | None, typer.Option("-q", "--search", help="Only lines that contain this text.")] = None,
    tail: Annotated[int | None, typer.Option(min=1, max=1000, help="Only this many of the last lines.")] = None,
    raw: Annotated[
        bool,
        typer.Option(
            "--raw",
            help=(
                "Print control characters as they are, so that lines can colour and overwrite your terminal. Only "
                "for code you trust."
            ),
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Print the log lines of a job."""
    chosen = {"rank": rank, "attempt": attempt, "q": q, "tail": tail}
    with connect() as client:
        one = job_id(client, job)
        lines: Iterable[Any] = client.follow_logs(one, **chosen) if follow else client.logs(one, **chosen)
        for line in lines:
            print(json.dumps(line) if as_json else _line(line if raw else fit(line)), flush=follow)


def _line(line: dict[str, Any]) -> str:
    return f"{local_time(line['at'])} {_who(line['rank'])} {line['level']} {line['text']}"


def _who(rank: int) -> str:
    return "driver" if rank < 0 else f"rank {rank}"


@app.command()
def events(
    job: Job,
    *,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Keep printing until the job is finished.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print what happened to a job: states, phases, checkpoints, alerts."""
    with connect() as client:
        one = job_id(client, job)
        for event in client.follow_events(one) if follow else client.events(one):
            if as_json:
                print(json.dumps(event), flush=follow)
            elif event["kind"] != "progress":
                shown = fit(event)
                print(f"{local_time(shown['at'])} {shown['kind']}  {shown['message']}".rstrip(), flush=follow)


@app.command()
def attempts(job: Job, as_json: AsJson = False) -> None:
    """Show each attempt of a job: how far it came, why it ended, how long its phases took, where its ranks ran."""
    with connect() as client:
        found = client.attempts(job_id(client, job))
    show_value(found, as_json, attempts_table)


@app.command()
def stacks(
    job: Job,
    *,
    rank: Annotated[int | None, typer.Option(help="Only this rank; -1 is the driver.")] = None,
    all_threads: Annotated[
        bool, typer.Option("--all-threads", help="All threads, not only the one that trains.")
    ] = False,
    wait_s: Annotated[float, typer.Option(min=0, max=5, help="Seconds to wait for the answers.")] = 3,
    as_json: AsJson = False,
) -> None:
    """Show what each process of a running job is doing, also of one that hangs; of an ended one, what it did last."""
    with connect() as client:
        found = client.stacks(job_id(client, job), wait_s)
    if rank is not None:
        found["items"] = [one for one in found["items"] if one["rank"] == rank]
        found["silent"] = [one for one in found["silent"] if one == rank]
    show_value(found, as_json, lambda found: _stacks(found, all_threads))


def _stacks(found: dict[str, Any], all_threads: bool) -> str:
    parts = []
    for process in found["items"]:
        threads = process["threads"] if all_threads else process["threads"][:1]
        parts += [f"{_who(process['rank'])}, {thread['name']}\n{thread['stack']}" for thread in threads]
    if found["silent"]:
        names = ", ".join(map(_who, found["silent"]))
        parts.append(f"No answer from {names}: busy in native code, stopped, or not reachable.")
    if not found["is_running"]:
        parts.append(f"Attempt {found['attempt']} has ended. This is what was asked for last.")
    return "\n\n".join(parts)


@app.command()
def checkpoints(job: Job, as_json: AsJson = False) -> None:
    """List the checkpoints of a job, newest first."""
    with connect() as client:
        found = client.checkpoints(job_id(client, job))
    show_value(found, as_json, checkpoints_table)


@app.command()
def statistics(job: Job, as_json: AsJson = False) -> None:
    """Show the latest running statistics of each normalization layer; with --json, all over time."""
    with connect() as client:
        found = client.statistics(job_id(client, job))
    show_value(found, as_json, statistics_table)
