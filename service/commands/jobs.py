"""`syncnorm submit`, `ls`, `cancel` and the other verbs of a job as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from service.client import TERMINAL
from service.commands import show as screen
from service.commands.arguments import AsJson, JobId, Settings, complete_job
from service.commands.plan_table import plan_table
from service.commands.specfile import load
from service.commands.tables import jobs_table
from service.commands.terminal import JOB_FAILED, WRONG_USE, connect, err, fail, out, show_value

app = typer.Typer()
Label = Annotated[list[str] | None, typer.Option("--label", help="key:value; may be given several times.")]


@app.command()
def submit(
    file: Annotated[Path, typer.Argument(help="YAML or JSON job file.")],
    settings: Settings,
    follow: Annotated[bool, typer.Option("--follow", help="Show progress until the job is finished.")] = False,
    as_json: AsJson = False,
) -> None:
    """Submit a job."""
    with connect() as client:
        job = client.submit(load(file, settings))
        if not follow:
            show_value(job, as_json, f"{job['id']} {job['state']}")
            return
        err.print(f"{job['id']} (Ctrl-C leaves it running)", highlight=False)
        try:
            job = screen.follow(client, job["id"], err)
        except KeyboardInterrupt:
            err.print(f"The job goes on: syncnorm show {job['id']}", highlight=False)
            return
        _show(job, as_json)
        raise typer.Exit(0 if job["state"] == "succeeded" else JOB_FAILED)


@app.command()
def plan(
    file: Annotated[Path, typer.Argument(help="YAML or JSON job file.")], settings: Settings, as_json: AsJson = False
) -> None:
    """Show what a job file comes to, without submitting it."""
    with connect() as client:
        found = client.plan(load(file, settings))
    show_value(found, as_json, plan_table(found))


@app.command()
def ls(
    state: Annotated[str | None, typer.Option(help="Only jobs in this state.")] = None,
    project: Annotated[str | None, typer.Option(help="Only jobs of this project.")] = None,
    owner: Annotated[str | None, typer.Option(help="Only jobs of this owner.")] = None,
    norm: Annotated[str | None, typer.Option(help="Only jobs with this kind of normalization.")] = None,
    name: Annotated[str | None, typer.Option(help="Only jobs of this name.")] = None,
    label: Annotated[str | None, typer.Option(help="Only jobs with this label, as key:value.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most this many.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    filters = {"state": state, "project": project, "owner": owner, "norm": norm, "name": name, "label": label}
    with connect() as client:
        found = client.jobs(**filters, limit=min(limit, 200))
        jobs = [job for _, job in zip(range(limit), found, strict=False)]
    show_value(jobs, as_json, jobs_table(jobs))


@app.command()
def show(job_id: JobId, as_json: AsJson = False) -> None:
    """Show one job."""
    with connect() as client:
        _show(client.job(job_id), as_json)


@app.command()
def watch(
    job_ids: Annotated[
        list[str] | None,
        typer.Argument(
            help="Job ids; none: all that are not finished.", autocompletion=complete_job, metavar="[JOB]..."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Follow a job, or several in a live table, until they are finished. With --json: the list of them, then."""
    with connect() as client:
        if job_ids and len(job_ids) == 1:
            jobs: Sequence[Any] = [screen.follow(client, job_ids[0], err)]
            if not as_json:
                screen.summary(jobs[0], out)
        else:
            chosen = job_ids or [job["id"] for job in client.jobs(limit=200) if job["state"] not in TERMINAL]
            jobs = screen.watch(lambda: [client.job(job_id) for job_id in chosen], err if as_json else out)
        if as_json:
            show_value(jobs, True, "")
    raise typer.Exit(0 if all(job["state"] == "succeeded" for job in jobs) else JOB_FAILED)


@app.command()
def explain(job_id: JobId, as_json: AsJson = False) -> None:
    """Say why a job waits or stopped."""
    with connect() as client:
        found = client.explain(job_id)
    lines = [f"{found['code']}: {found['message']}"]
    lines += [f"in the way: {', '.join(found['blockers'])}"] if found["blockers"] else []
    lines += [f"estimated start: {found['estimated_start']}"] if found["estimated_start"] else []
    show_value(found, as_json, "\n".join(lines))


@app.command()
def cancel(job_id: JobId, as_json: AsJson = False) -> None:
    """Ask a job to stop."""
    with connect() as client:
        _print_asked(client.cancel(job_id), as_json, "cancel requested")


@app.command()
def pause(job_id: JobId, as_json: AsJson = False) -> None:
    """Ask a job to stop with a checkpoint and give its room back, until it is resumed."""
    with connect() as client:
        _print_asked(client.pause(job_id), as_json, "pause requested")


@app.command()
def resume(job_id: JobId, as_json: AsJson = False) -> None:
    """Put a paused job back into the queue."""
    with connect() as client:
        _print_asked(client.resume(job_id), as_json, "goes on from its last step")


@app.command()
def retry(job_id: JobId, as_json: AsJson = False) -> None:
    """Put a failed or cancelled job back into the queue."""
    with connect() as client:
        _print_asked(client.retry(job_id), as_json, "goes on from its last checkpoint")


@app.command()
def change(
    job_id: JobId,
    *,
    priority: Annotated[int | None, typer.Option(min=-100, max=100, help="Higher goes first.")] = None,
    label: Label = None,
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
        job = client.change(job_id, priority=priority, labels=labels)
    shown = " ".join(f"{key}:{value}" for key, value in job["labels"].items())
    show_value(job, as_json, f"{job['id']} {job['state']}, priority {job['priority']}, labels {shown or 'none'}")


@app.command()
def rm(job_id: JobId) -> None:
    """Delete a finished job with its checkpoints. Its MLflow run and its registered models stay."""
    with connect() as client:
        client.delete(job_id)
    print(f"{job_id} deleted")


def _show(job: dict[str, Any], as_json: bool) -> None:
    if as_json:
        show_value(job, True, "")
    else:
        screen.summary(job, out)


def _print_asked(job: dict[str, Any], as_json: bool, what: str) -> None:
    show_value(job, as_json, f"{job['id']} {job['state']}, {what}")
