"""`syncnorm submit`, `plan`, `show`, `explain`, `change`: verbs of one job."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from syncnorm.service.cli import progress as screen
from syncnorm.service.cli.arguments import AsJson, Job, Labels, Settings
from syncnorm.service.cli.formatting import local_time
from syncnorm.service.cli.job_file import load
from syncnorm.service.cli.plan_table import plan_table
from syncnorm.service.cli.selection import job_id
from syncnorm.service.cli.terminal import FINE, INTERRUPTED, JOB_FAILED, WRONG_USE, connect, err, fail, show_value

app = typer.Typer()
JobFile = Annotated[Path, typer.Argument(help="YAML or JSON job file; - reads standard input.", metavar="FILE")]


@app.command()
def submit(
    file: JobFile,
    settings: Settings = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show progress until the job is finished.")] = False,
    as_json: AsJson = False,
) -> None:
    """Submit a job."""
    with connect() as client:
        job = client.submit(load(file, settings or ()))
        if not follow:
            show_value(job, as_json, lambda job: f"{job['id']} {job['state']}")
            return
        err.print(f"{job['id']} (Ctrl-C leaves it running)")
        try:
            job = screen.follow(client, job["id"], err)
        except KeyboardInterrupt as error:
            err.print(f"The job continues. Look at it with: syncnorm show {job['id']}", soft_wrap=True)
            raise typer.Exit(INTERRUPTED) from error
        show_value(job, as_json, screen.summary)
        raise typer.Exit(FINE if job["state"] == "succeeded" else JOB_FAILED)


@app.command()
def plan(file: JobFile, settings: Settings = None, as_json: AsJson = False) -> None:
    """Show what a job file comes to, without submitting it."""
    with connect() as client:
        found = client.plan(load(file, settings or ()))
    show_value(found, as_json, plan_table)


@app.command()
def show(job: Job, as_json: AsJson = False) -> None:
    """Show one job."""
    with connect() as client:
        found = client.job(job_id(client, job))
    show_value(found, as_json, screen.summary)


@app.command()
def explain(job: Job, as_json: AsJson = False) -> None:
    """Say why a job waits or stopped."""
    with connect() as client:
        found = client.explain(job_id(client, job))
    show_value(found, as_json, _explanation)


@app.command()
def change(
    job: Job,
    *,
    priority: Annotated[int | None, typer.Option(min=-100, max=100, help="Higher goes first.")] = None,
    label: Labels = None,
    no_labels: Annotated[bool, typer.Option("--no-labels", help="Take all labels off.")] = False,
    as_json: AsJson = False,
) -> None:
    """Change the priority of a job, or all its labels."""
    if priority is None and label is None and not no_labels:
        fail("Say what to change: --priority, --label or --no-labels.", WRONG_USE)
    if label is not None and no_labels:
        fail("--label and --no-labels exclude each other.", WRONG_USE)
    pairs = [one.partition(":") for one in label or []]
    if wrong := [key for key, colon, _ in pairs if not colon]:
        fail(f"--label must be key:value, got {wrong[0]}", WRONG_USE)
    labels = None if label is None and not no_labels else {key: value for key, _, value in pairs}
    with connect() as client:
        changed = client.change(job_id(client, job), priority=priority, labels=labels)
    show_value(changed, as_json, _changed)


def _explanation(found: dict[str, Any]) -> str:
    lines = [f"{found['code']}: {found['message']}"]
    lines += [f"in the way: {', '.join(found['blockers'])}"] if found["blockers"] else []
    lines += [f"estimated start: {local_time(found['estimated_start'])}"] if found["estimated_start"] else []
    return "\n".join(lines)


def _changed(job: dict[str, Any]) -> str:
    shown = " ".join(f"{key}:{value}" for key, value in job["labels"].items())
    return f"{job['id']} {job['state']}, priority {job['priority']}, labels {shown or 'none'}"
