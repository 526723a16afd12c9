"""`syncnorm submit`, `plan`, `show`, `explain`, `change`: commands about one job."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from syncnorm.service.cli import progress as screen
from syncnorm.service.cli.arguments import AsJson, Job, Labels, Settings
from syncnorm.service.cli.code_folder import with_package
from syncnorm.service.cli.formatting import local_time
from syncnorm.service.cli.job_files.job_file import load, load_with_source
from syncnorm.service.cli.plan_table import plan_table
from syncnorm.service.cli.selection import job_id
from syncnorm.service.cli.terminal import FINE, INTERRUPTED, JOB_FAILED, WRONG_USE, connect, err, fail, fit, show_value
from syncnorm.service.client.client import Client, ProblemError

app = typer.Typer()
_MOST_NAMED = 5
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
        job = client.submit(with_package(client, load_with_source(file, settings or ())))
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
    """Show the plan of a job file, without submitting it. Exit code 2 if it has an error."""
    with connect() as client:
        found = client.plan(with_package(client, load(file, settings or ())))
    show_value(found, as_json, plan_table)
    if any(one["severity"] == "error" for one in found["findings"]):
        raise typer.Exit(WRONG_USE)


@app.command()
def show(job: Job, as_json: AsJson = False) -> None:
    """Show one job."""
    with connect() as client:
        found = client.job(job_id(client, job))
        waits = found["state"] == "queued" and not as_json
        why = client.explain(found["id"])["message"] if waits else None
    show_value(found, as_json, lambda found: screen.summary(found, why))


@app.command()
def explain(job: Job, as_json: AsJson = False) -> None:
    """Explain why a job waits, runs or stopped."""
    with connect() as client:
        found = client.explain(job_id(client, job))
        names = {} if as_json else _names(client, found["blockers"][:_MOST_NAMED])
    show_value(found, as_json, lambda found: _explanation(found, names))


def _names(client: Client, ids: Iterable[str]) -> dict[str, str]:
    """Names by id, of the jobs that the caller may see."""
    names = {}
    for one in ids:
        with suppress(ProblemError):
            names[one] = client.job(one)["name"]
    return names


@app.command()
def change(
    job: Job,
    *,
    priority: Annotated[
        int | None, typer.Option(min=-100, max=100, help="Place in the queue: higher goes first.")
    ] = None,
    label: Labels = None,
    no_labels: Annotated[bool, typer.Option("--no-labels", help="Remove all labels.")] = False,
    deadline_s: Annotated[
        float | None, typer.Option(help="Seconds from its first start until the job is stopped and fails.")
    ] = None,
    no_deadline: Annotated[bool, typer.Option("--no-deadline", help="Remove the deadline.")] = False,
    max_failures: Annotated[int | None, typer.Option(help="Failed attempts after which the job fails.")] = None,
    grace_s: Annotated[
        float | None, typer.Option(help="Seconds for the last checkpoint when the job is asked to stop.")
    ] = None,
    collective_timeout_s: Annotated[float | None, typer.Option(help="Seconds that ranks wait for each other.")] = None,
    as_json: AsJson = False,
) -> None:
    """Change the priority of a job, all its labels, or its limits while it is queued, paused or failed."""
    given = {
        "deadline_s": deadline_s,
        "max_failures": max_failures,
        "grace_s": grace_s,
        "collective_timeout_s": collective_timeout_s,
    }
    limits = _limits(given, no_deadline)
    labels = _labels(label, no_labels)
    if priority is None and labels is None and not limits:
        fail("Say what to change: --priority, --label, --no-labels, or a limit such as --deadline-s.", WRONG_USE)
    with connect() as client:
        changed = client.change(job_id(client, job), priority=priority, labels=labels, limits=limits or None)
    show_value(changed, as_json, lambda job: _changed(job, limits))


def _limits(given: Mapping[str, float | None], no_deadline: bool) -> dict[str, float | None]:
    """The limits to change, with their new values."""
    limits = {name: value for name, value in given.items() if value is not None}
    if wrong := [name for name, value in limits.items() if not math.isfinite(value)]:
        fail(f"{wrong[0]} must be a finite number, got {limits[wrong[0]]}.", WRONG_USE)
    if not no_deadline:
        return dict(limits)
    _exclude("--deadline-s", given["deadline_s"], "--no-deadline")
    return {**limits, "deadline_s": None}


def _labels(given: list[str] | None, none: bool) -> dict[str, str] | None:
    """The new labels of a job; None: no change."""
    if none:
        _exclude("--label", given, "--no-labels")
        return {}
    pairs = [one.partition(":") for one in given or []]
    if wrong := [key for key, colon, _ in pairs if not colon]:
        fail(f"--label must be key:value, got {wrong[0]}", WRONG_USE)
    return None if given is None else {key: value for key, _, value in pairs}


def _exclude(option: str, value: object, other: str) -> None:
    if value is not None:
        fail(f"{option} and {other} exclude each other.", WRONG_USE)


def _explanation(found: dict[str, Any], names: Mapping[str, str]) -> str:
    lines = [f"{found['code']}: {found['message']}"]
    blockers = [f"{one} ({fit(names[one])})" if one in names else one for one in found["blockers"]]
    lines += [f"in the way: {', '.join(blockers)}"] if blockers else []
    lines += [f"estimated start: {local_time(found['estimated_start'])}"] if found["estimated_start"] else []
    return "\n".join(lines)


def _changed(job: dict[str, Any], limits: Iterable[str]) -> str:
    shown = " ".join(f"{key}:{value}" for key, value in job["labels"].items())
    said = [f"{name} {'none' if (value := job['spec']['limits'][name]) is None else value}" for name in limits]
    return ", ".join([f"{job['id']} {job['state']}, priority {job['priority']}, labels {shown or 'none'}", *said])
