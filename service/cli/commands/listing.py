"""`syncnorm ls` and `watch`: lists of jobs, and the live view of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from typing import Annotated, Any

import typer

from syncnorm.service.cli import progress as screen
from syncnorm.service.cli.arguments import AsJson, Jobs, Labels
from syncnorm.service.cli.selection import job_id, matching
from syncnorm.service.cli.tables import jobs_table
from syncnorm.service.cli.terminal import (
    ANY_COLUMNS,
    FINE,
    JOB_FAILED,
    WRONG_USE,
    Screen,
    connect,
    err,
    fail,
    out,
    show_value,
)
from syncnorm.service.client.client import TERMINAL, Client

app = typer.Typer()
_MOST_WATCHED = 200


@app.command()
def ls(
    *,
    state: Annotated[
        list[str] | None, typer.Option(help="Only jobs in this state; may be given several times.")
    ] = None,
    project: Annotated[str | None, typer.Option(help="Only jobs of this project.")] = None,
    owner: Annotated[str | None, typer.Option(help="Only jobs of this owner.")] = None,
    norm: Annotated[str | None, typer.Option(help="Only jobs with this kind of normalization.")] = None,
    name: Annotated[str | None, typer.Option(help="Only jobs with exactly this name.")] = None,
    label: Labels = None,
    limit: Annotated[int, typer.Option(min=1, help="Most jobs to list.")] = 50,
    wide: Annotated[
        bool, typer.Option("--wide", help="Show whole ids and every column; on a narrow terminal, the rows wrap.")
    ] = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Refresh the list until Ctrl-C.")] = False,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    _check_form(wide, watch, as_json)
    exact = {"project": project, "owner": owner, "norm": norm, "name": name}
    with connect() as client:

        def poll(most: int) -> list[Any]:
            found = matching(client, states=state or (), labels=label or (), page=min(most, 200), **exact)
            return list(islice(found, most))

        if watch:
            screen.watch(lambda: client.persist(lambda: poll(limit)), out, until=lambda _jobs: False)
        jobs = poll(limit + 1)
    console = Screen(width=ANY_COLUMNS) if wide else out
    none = "No jobs match." if any([state, label, *exact.values()]) else "No jobs."
    show_value(jobs[:limit], as_json, lambda jobs: jobs_table(jobs, console.width) if jobs else none, console)
    if len(jobs) > limit and not as_json:
        err.print(
            f"The newest {limit} of more. List more with --limit, or fewer with a filter such as --state running."
        )


def _check_form(wide: bool, watch: bool, as_json: bool) -> None:
    """Refuse options that would have no effect."""
    if watch and as_json:
        fail("--watch can't be used with --json. Run `syncnorm ls --json` again instead.", WRONG_USE)
    if wide and (watch or as_json):
        why = "--watch draws a table as wide as the terminal" if watch else "--json has every field"
        fail(f"--wide has no effect here, because {why}. Leave out one of the two.", WRONG_USE)


@app.command()
def watch(jobs: Jobs = None, as_json: AsJson = False) -> None:
    """Follow a job, or several in a live table, until they are finished. Without JOB: all that are not finished. With
    --json, the list of them is printed at the end."""
    with connect() as client:
        if jobs and len(jobs) == 1:
            ended: Sequence[Any] = [screen.follow(client, job_id(client, jobs[0]), err)]
        else:
            chosen = [client.job(job_id(client, one)) for one in jobs] if jobs else _unfinished(client)
            ended = screen.watch(_poller(client, chosen), err if as_json else out)
        if as_json:
            show_value(ended, True, str)
        elif len(ended) == 1:
            show_value(ended[0], False, screen.summary)
    raise typer.Exit(FINE if all(job["state"] == "succeeded" for job in ended) else JOB_FAILED)


def _unfinished(client: Client) -> list[Any]:
    return [job for job in islice(client.jobs(limit=200), _MOST_WATCHED) if job["state"] not in TERMINAL]


def _poller(client: Client, jobs: Sequence[Any]) -> Callable[[], list[Any]]:
    """Reads those jobs again that were not finished the last time."""
    known = {job["id"]: job for job in jobs}

    def poll() -> list[Any]:
        for one, job in known.items():
            if job["state"] not in TERMINAL:
                known[one] = client.persist(partial(client.job, one))
        return list(known.values())

    return poll
