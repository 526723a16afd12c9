"""How the command line shows jobs: a progress bar to follow, a live table, a closing summary."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn
from rich.table import Table

from service.client import TERMINAL, Client
from service.commands.tables import COLORS, duration, jobs_table
from service.run_note import certificate_line

Json = dict[str, Any]


def follow(client: Client, job_id: str, console: Console) -> Json:
    """Show progress until the job is finished; the finished job."""
    columns = (
        SpinnerColumn(finished_text=" "),
        TextColumn("{task.fields[state]:<10}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[text]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=100, state="queued", text="")
        for event in client.follow_events(job_id):
            if event["kind"] == "progress":
                bar.update(task, completed=event["data"].get("percent") or 0, text=progress_text(event["data"]))
            elif event["kind"] in STATES:
                bar.update(task, state=event["kind"])
                if event["kind"] == "succeeded":
                    bar.update(task, completed=100)
            elif event["kind"] not in _QUIET:
                console.print(f"[dim]{event['kind']}[/]: {escape(event['message'])}", highlight=False)
    return client.job(job_id)


_QUIET = ("checkpoint", "phase")
_LOOK_S = 1.0
STATES = ("queued", "starting", "running", "stopping", "paused", "finalizing", "succeeded", "failed", "cancelled")


def progress_text(progress: Mapping[str, Any]) -> str:
    parts = [
        f"epoch {progress['epoch']}/{progress['epochs'] or '?'}",
        f"step {progress['step']}/{progress['steps'] or '?'}",
    ]
    loss = progress["metrics"].get("train/loss")
    if loss is not None:
        parts.append(f"loss {loss:.4f}")
    if progress.get("eta_s") is not None:
        parts.append(f"ETA {duration(progress['eta_s'])}")
    return "  ".join(parts)


def summary(job: Json, console: Console) -> None:
    """Where a job stands; of a finished one what came of it."""
    state = f"[{COLORS.get(job['state'], 'white')}]{job['state']}[/]"
    console.print(f"[bold]{escape(job['name'])}[/] {job['id']} {state} {escape(job['message'])}", highlight=False)
    if job["state"] == "queued":
        console.print(f"Why it waits: syncnorm explain {job['id']}", highlight=False, soft_wrap=True)
    elif job["state"] not in TERMINAL:
        console.print(f"{progress_text(job['progress'])}", highlight=False)
    if metrics := job["progress"]["metrics"]:
        table = Table("metric", "value", box=None)
        for name in sorted(metrics):
            if not name.startswith("norm/") or name == "norm/sync_share":
                table.add_row(name, f"{metrics[name]:.6g}")
        console.print(table)
    if job["mlflow"]["url"]:
        console.print(f"MLflow run   {job['mlflow']['url']}", highlight=False, soft_wrap=True)
    if model := job["model"]:
        console.print(f"Model        {model['uri']}", highlight=False, soft_wrap=True)
        if model["registered"]:
            console.print(f"Registered   {model['registered']}", highlight=False)
        console.print(f"Certificate  {certificate_line(model['certificate'])}", highlight=False, soft_wrap=True)


def watch(
    look: Callable[[], Sequence[Json]], console: Console, rest: Callable[[float], None] = time.sleep
) -> Sequence[Json]:
    """A live table of what `look` finds, until all of it is finished; the jobs at the end."""
    with Live(console=console, auto_refresh=False) as live:
        while True:
            jobs = look()
            live.update(jobs_table(jobs), refresh=True)
            if all(job["state"] in TERMINAL for job in jobs):
                return jobs
            rest(_LOOK_S)
