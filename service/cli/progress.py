"""Shows jobs on the terminal: a progress bar, a live table, a closing summary."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn
from rich.table import Table
from rich.text import Text

from syncnorm.service.cli.formatting import duration, local_time, number, slowest_rank, took
from syncnorm.service.cli.plan_table import GUARANTEE_LABELS
from syncnorm.service.cli.tables import jobs_table, state_text
from syncnorm.service.cli.terminal import fit
from syncnorm.service.client.client import TERMINAL, Client
from syncnorm.service.integrations.mlflow_note import certificate_line, windows_line
from syncnorm.trainer.contract.plan import guarantee_rows
from syncnorm.trainer.contract.text import visible

Json = dict[str, Any]
STATES = ("queued", "starting", "running", "stopping", "paused", "finalizing", "succeeded", "failed", "cancelled")
_QUIET = ("checkpoint", "phase")
_POLL_S = 1.0
_POLL_S_PER_JOB = 0.05


def follow(client: Client, job_id: str, console: Console) -> Json:
    """Show progress until the job is finished; returns the finished job."""
    columns = (
        SpinnerColumn(finished_text=" "),
        TextColumn("{task.fields[state]:<10}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[text]}", markup=False),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=100, state="queued", text="")
        client.connection.on_lost = lambda message: console.print(visible(message), style="yellow", markup=False)
        for event in (fit(one, console) for one in client.follow_events(job_id)):
            if event["kind"] == "progress":
                bar.update(task, completed=event["data"].get("percent") or 0, text=progress_text(event["data"]))
            elif event["kind"] in STATES:
                bar.update(task, state=event["kind"])
                if event["kind"] == "succeeded":
                    bar.update(task, completed=100)
            elif event["kind"] not in _QUIET:
                console.print(Text.assemble((event["kind"], "dim"), f": {event['message']}"))
    return client.persist(lambda: client.job(job_id))


def progress_text(progress: Mapping[str, Any]) -> str:
    parts = [
        f"epoch {progress['epoch']}/{progress['epochs'] or '?'}",
        f"step {progress['step']}/{progress['steps'] or '?'}",
    ]
    loss = progress["metrics"].get("train/loss")
    if loss is not None:
        parts.append(f"loss {number(loss, '.4f')}")
    if progress.get("eta_s") is not None:
        parts.append(f"ETA {duration(progress['eta_s'])}")
    return "  ".join(parts)


def summary(job: Json, why_it_waits: str | None = None) -> RenderableType:
    """The state of a job, and the results of a finished one."""
    name, state = Text(job["name"], style="bold"), state_text(job["state"])
    parts: list[RenderableType] = [Text.assemble(name, f" {job['id']} ", state, f" {job['message']}")]
    if job["state"] == "queued":
        parts.append(Text(f"Why it waits: {why_it_waits or 'syncnorm explain ' + job['id']}"))
    elif job["state"] not in TERMINAL:
        parts.append(Text(progress_text(job["progress"])))
    if metrics := job["progress"]["metrics"]:
        table = Table("metric", "value", box=None)
        for metric in sorted(metrics):
            if not metric.startswith("norm/") or metric == "norm/sync_share":
                table.add_row(metric, number(metrics[metric]))
        parts.append(table)
    parts += [Text(f"{label:<12} {text}") for label, text in _facts(job)]
    return Group(*parts)


def _facts(job: Json) -> Iterator[tuple[str, str]]:
    yield "Project", f"{job['project']}, owner {job['owner']}, priority {job['priority']}"
    if job["labels"]:
        yield "Labels", " ".join(f"{key}:{value}" for key, value in job["labels"].items())
    yield "Submitted", local_time(job["created_at"])
    if job["started_at"]:
        verb = "took" if job["finished_at"] else "for"
        yield "Started", f"{local_time(job['started_at'])}, {verb} {took(job)}"
    if slowest := slowest_rank(job["progress"]["metrics"]):
        yield "Slowest", slowest
    if job["mlflow"]["url"]:
        yield "MLflow run", job["mlflow"]["url"]
    for name, holds, why in guarantee_rows(job.get("guarantees")):
        yield GUARANTEE_LABELS[name], f"{holds}: {why}"
    if (export := job.get("export")) and export["state"] != "certified":
        yield "Export", ": ".join(filter(None, (export["state"], export["message"])))
    if model := job["model"]:
        yield "Model", model["uri"] or f"none in MLflow. {(job.get('export') or {}).get('message', '')}".rstrip()
        if model["registered"]:
            yield "Registered", model["registered"]
        taken = model["certificate"].get("checkpoint") or {}
        if taken.get("which", "last") != "last":
            yield (
                "Checkpoint",
                f"{taken['which']}, of step {taken['step']}. The metrics above are those of the last step",
            )
        yield "Certificate", certificate_line(model["certificate"])
        if windows := windows_line(model["certificate"]):
            yield "Windows", windows


def _finished(jobs: Sequence[Json]) -> bool:
    return all(job["state"] in TERMINAL for job in jobs)


def watch(
    poll: Callable[[], Sequence[Json]],
    console: Console,
    rest: Callable[[float], None] = time.sleep,
    until: Callable[[Sequence[Json]], bool] = _finished,
) -> Sequence[Json]:
    """A live table of what `poll` finds until all of it is finished. Returns the jobs at the end.

    Many jobs are asked for less often.
    """
    with Live(console=console, auto_refresh=False) as live:
        while True:
            jobs = poll()
            live.update(jobs_table(fit(jobs, console), console.width), refresh=True)
            if until(jobs):
                return jobs
            rest(max(_POLL_S, _POLL_S_PER_JOB * len(jobs)))
