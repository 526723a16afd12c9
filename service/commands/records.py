"""`syncnorm logs`, `events`, `attempts` and the other records that a job leaves."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Annotated, Any

import typer

from service.commands.arguments import AsJson, JobId
from service.commands.tables import attempts_table, checkpoints_table, statistics_table
from service.commands.terminal import connect, show_value

app = typer.Typer()


@app.command()
def logs(
    job_id: JobId,
    *,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the job is finished.")] = False,
    rank: Annotated[int | None, typer.Option(help="Only this rank; -1 is the driver.")] = None,
    attempt: Annotated[int | None, typer.Option(help="Only this attempt.")] = None,
    q: Annotated[str | None, typer.Option("-q", "--search", help="Only lines that contain this text.")] = None,
    tail: Annotated[int | None, typer.Option(min=1, max=1000, help="Only the last lines.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print the log lines of a job."""
    chosen = {"rank": rank, "attempt": attempt, "q": q, "tail": tail}
    with connect() as client:
        lines: Iterable[Any] = client.follow_logs(job_id, **chosen) if follow else client.logs(job_id, **chosen)
        for line in lines:
            who = "driver" if line["rank"] < 0 else f"rank {line['rank']}"
            text = f"{line['at']} {who} {line['level']} {line['text']}"
            print(json.dumps(line) if as_json else text, flush=True)


@app.command()
def events(
    job_id: JobId,
    *,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the job is finished.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print what happened to a job: states, phases, checkpoints, alerts."""
    with connect() as client:
        found = client.follow_events(job_id) if follow else client.events(job_id)
        for event in found:
            if as_json:
                print(json.dumps(event), flush=True)
            elif event["kind"] != "progress":
                print(f"{event['at']} {event['kind']}  {event['message']}", flush=True)


@app.command()
def attempts(job_id: JobId, as_json: AsJson = False) -> None:
    """Show each start of a job: how far it came, why it ended, how long its phases took, where its ranks ran."""
    with connect() as client:
        found = client.attempts(job_id)
    show_value(found, as_json, attempts_table(found))


@app.command()
def checkpoints(job_id: JobId, as_json: AsJson = False) -> None:
    """List the checkpoints of a job, newest first."""
    with connect() as client:
        found = client.checkpoints(job_id)
    show_value(found, as_json, checkpoints_table(found))


@app.command()
def statistics(job_id: JobId, as_json: AsJson = False) -> None:
    """Show the last running statistics of each normalization layer; with --json, all over time."""
    with connect() as client:
        found = client.statistics(job_id)
    show_value(found, as_json, statistics_table(found))
