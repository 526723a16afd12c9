"""The command line: the same verbs as the API.

Exit codes: 0 fine, 1 the job failed, 2 wrong use, 3 unreachable, 4 not allowed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from service import show as screen
from service.client import TERMINAL, Client, ProblemError, ServiceUnreachableError
from service.export_command import export
from service.show_plan import plan_table
from service.specfile import load
from service.studies.cli import study_app
from service.terminal import JOB_FAILED, WRONG_USE, AsJson, connect, err, fail, out, show_value
from service.token_commands import token_app
from service.upload import package_app, secret_app

app = typer.Typer(
    name="syncnorm",
    help="Distributed training with synchronized normalization.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(token_app, name="token")
app.add_typer(study_app, name="study")
app.add_typer(package_app, name="package")
app.add_typer(secret_app, name="secret")
app.command()(export)


def complete_job(incomplete: str) -> list[tuple[str, str]]:
    """For shell completion (`syncnorm --install-completion`): the newest jobs that begin so, with name and state."""
    try:
        with Client(timeout_s=2) as client:
            newest = zip(range(50), client.jobs(limit=50), strict=False)
            return [
                (job["id"], f"{job['name']} {job['state']}") for _, job in newest if job["id"].startswith(incomplete)
            ]
    except (ServiceUnreachableError, ProblemError):
        return []


JobId = Annotated[str, typer.Argument(help="Job id, e.g. job_01h…", autocompletion=complete_job)]
Settings = Annotated[
    list[str], typer.Option("--set", default_factory=list, help="Change a value of the file, e.g. norm.kind=group.")
]


@app.command()
def serve() -> None:
    """Run the service until Ctrl-C. What no SYNCNORM_ variable names, it starts for itself."""
    from service import logs
    from service.runtime import serve as run
    from service.settings import Settings as ServiceSettings

    logs.configure(sys.stderr)

    def ready(url: str, context: Any) -> None:
        out.print(f"syncnorm  {url}   (API docs at {url}/docs)", highlight=False, soft_wrap=True)
        out.print(f"MLflow    {context.mlflow_uri}", highlight=False, soft_wrap=True)

    try:
        run(ServiceSettings.from_environment(), ready)
    except (ValueError, OSError) as error:
        fail(str(error), WRONG_USE)
    except KeyboardInterrupt:
        out.print("stopped")


@app.command()
def submit(
    file: Annotated[Path, typer.Argument(help="YAML or JSON job file.")],
    settings: Settings,
    follow: Annotated[bool, typer.Option("--follow", help="Show progress until the job is finished.")] = False,
    as_json: AsJson = False,
) -> None:
    """Submit a job."""
    with connect() as client:
        job = client.submit(_load(file, settings))
        if not follow:
            show_value(job, as_json, f"{job['id']} {job['state']}")
            return
        err.print(f"{job['id']} (Ctrl-C leaves it running)", highlight=False)
        try:
            job = screen.follow(client, job["id"], err)
        except KeyboardInterrupt:
            err.print(f"The job goes on: syncnorm show {job['id']}", highlight=False)
            return
        if as_json:
            show_value(job, True, "")
        else:
            screen.summary(job, out)
        raise typer.Exit(0 if job["state"] == "succeeded" else JOB_FAILED)


@app.command()
def ls(
    state: Annotated[str | None, typer.Option(help="Only jobs in this state.")] = None,
    project: Annotated[str | None, typer.Option(help="Only jobs of this project.")] = None,
    label: Annotated[str | None, typer.Option(help="Only jobs with this label, as key:value.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most this many.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    with connect() as client:
        found = client.jobs(state=state, project=project, label=label, limit=min(limit, 200))
        jobs = [job for _, job in zip(range(limit), found, strict=False)]
    if as_json:
        show_value(jobs, True, "")
    else:
        out.print(screen.jobs_table(jobs))


@app.command()
def show(job_id: JobId, as_json: AsJson = False) -> None:
    """Show one job."""
    with connect() as client:
        job = client.job(job_id)
    if as_json:
        show_value(job, True, "")
    else:
        screen.summary(job, out)


@app.command()
def logs(
    job_id: JobId,
    *,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the job is finished.")] = False,
    rank: Annotated[int | None, typer.Option(help="Only this rank; -1 is the driver.")] = None,
    attempt: Annotated[int | None, typer.Option(help="Only this attempt.")] = None,
    tail: Annotated[int | None, typer.Option(min=1, max=1000, help="Only the last lines.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print the log lines of a job."""
    with connect() as client:
        if follow:
            lines: Any = client.follow_logs(job_id, rank=rank, attempt=attempt, tail=tail)
        else:
            lines = client.logs(job_id, rank=rank, attempt=attempt, tail=tail or 1000)
        for line in lines:
            if as_json:
                print(json.dumps(line), flush=True)
            else:
                who = "driver" if line["rank"] < 0 else f"rank {line['rank']}"
                print(f"{line['at']} {who} {line['level']} {line['text']}", flush=True)


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
def explain(job_id: JobId, as_json: AsJson = False) -> None:
    """Say why a job waits or stopped."""
    with connect() as client:
        found = client.explain(job_id)
    lines = [f"{found['code']}: {found['message']}"]
    lines += [f"in the way: {', '.join(found['blockers'])}"] if found["blockers"] else []
    lines += [f"estimated start: {found['estimated_start']}"] if found["estimated_start"] else []
    show_value(found, as_json, "\n".join(lines))


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
def norms(as_json: AsJson = False) -> None:
    """List the normalization kinds a job may name."""
    with connect() as client:
        found = client.norms()
    show_value(found, as_json, "\n".join(f"{kind['name']:<24}{kind['summary']}" for kind in found))


def _print_asked(job: dict[str, Any], as_json: bool, what: str) -> None:
    show_value(job, as_json, f"{job['id']} {job['state']}, {what}")


@app.command()
def plan(file: Annotated[Path, typer.Argument()], settings: Settings, as_json: AsJson = False) -> None:
    """Show what a job file comes to, without submitting it."""
    with connect() as client:
        found = client.plan(_load(file, settings))
    if as_json:
        show_value(found, True, "")
    else:
        out.print(plan_table(found))


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Check a running deployment: database, MLflow, Ray, storage, workers. Exit code 1 if something is wrong."""
    from service.doctor import examine
    from service.settings import Settings as ServiceSettings

    failed = False
    try:
        for check in examine(ServiceSettings.from_environment()):
            failed = failed or check.problem is not None
            text = f"{'wrong' if check.problem else 'fine ':5}  {check.name}: {check.problem or check.detail}"
            print(json.dumps(asdict(check)) if as_json else text, flush=True)
    except ValueError as error:
        fail(str(error), WRONG_USE)
    raise typer.Exit(JOB_FAILED if failed else 0)


@app.command()
def version(as_json: AsJson = False) -> None:
    """Print the version."""
    from service.app import VERSION

    show_value({"version": VERSION}, as_json, VERSION)


def _load(file: Path, settings: Sequence[str]) -> dict[str, Any]:
    return load(file, settings)


def main() -> None:
    app()


if __name__ == "__main__":
    main()
