"""`syncnorm study …`"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from service.commands.arguments import AsJson
from service.commands.specfile import load
from service.commands.terminal import JOB_FAILED, WRONG_USE, connect, err, fail, out, show_value

study_app = typer.Typer(help="Run families of jobs, and compare them.", no_args_is_help=True)
StudyId = Annotated[str, typer.Argument(help="Study id, e.g. study_01h…")]
_LOOK_S = 2.0
_FORMS = {".html": "html", ".png": "png", ".json": "json"}
_COLORS = {"agrees": "green", "does not agree": "red"}


@study_app.command()
def submit(
    file: Annotated[Path, typer.Argument(help="YAML or JSON study file.")],
    settings: Annotated[
        list[str], typer.Option("--set", default_factory=list, help="Change a value, e.g. base.train.epochs=2.")
    ],
    follow: Annotated[bool, typer.Option("--follow", help="Wait until all jobs are finished.")] = False,
    as_json: AsJson = False,
) -> None:
    """Submit a study."""
    with connect() as client:
        study = client.submit_study(load(file, settings))
        if not follow:
            show_value(study, as_json, f"{study['id']} {_line(study)}")
            return
        try:
            while study["state"] != "finished":
                time.sleep(_LOOK_S)
                found = client.study(study["id"])
                if found["jobs"] != study["jobs"]:
                    err.print(f"{study['id']} {_line(found)}", highlight=False)
                study = found
        except KeyboardInterrupt:
            err.print(f"The study goes on: syncnorm study show {study['id']}", highlight=False)
            return
        _show(client.study(study["id"]), as_json)
    raise typer.Exit(0 if set(study["jobs"]) == {"succeeded"} else JOB_FAILED)


@study_app.command()
def ls(as_json: AsJson = False) -> None:
    """List studies, newest first."""
    with connect() as client:
        studies = list(client.studies())
    lines = [f"{study['id']}  {study['name']}  {_line(study)}  {study['created_at'][:19]}" for study in studies]
    show_value(studies, as_json, "\n".join(lines))


@study_app.command()
def show(study_id: StudyId, as_json: AsJson = False) -> None:
    """Show a study: what was found, and the comparison table."""
    with connect() as client:
        _show(client.study(study_id), as_json)


@study_app.command()
def cancel(study_id: StudyId, as_json: AsJson = False) -> None:
    """Ask all unfinished jobs of a study to stop."""
    _ask(study_id, "cancel", as_json)


@study_app.command()
def pause(study_id: StudyId, as_json: AsJson = False) -> None:
    """Ask all jobs to stop with a checkpoint, until the study is resumed."""
    _ask(study_id, "pause", as_json)


@study_app.command()
def resume(study_id: StudyId, as_json: AsJson = False) -> None:
    """Put all paused jobs of a study back into the queue."""
    _ask(study_id, "resume", as_json)


@study_app.command()
def retry(study_id: StudyId, as_json: AsJson = False) -> None:
    """Put all failed and cancelled jobs of a study back into the queue."""
    _ask(study_id, "retry", as_json)


@study_app.command()
def report(
    study_id: StudyId,
    to: Annotated[
        Path | None, typer.Option("-o", "--output", help="A file ending in .html, .png or .json; else STUDY.html.")
    ] = None,
    picture: Annotated[str, typer.Option(help="For .png: comparison, curves or heat_map.")] = "comparison",
    as_json: AsJson = False,
) -> None:
    """Write the report of a study to a file; with --json, print it."""
    if as_json:
        with connect() as client:
            print(client.study_report(study_id, "json").decode())
        return
    path = to or Path(f"{study_id}.html")
    if path.suffix not in _FORMS:
        fail(f"-o must end in one of {', '.join(_FORMS)}, got {path}", WRONG_USE)
    with connect() as client:
        path.write_bytes(client.study_report(study_id, _FORMS[path.suffix], picture))
    out.print(str(path), highlight=False, soft_wrap=True)


def _ask(study_id: str, verb: str, as_json: bool) -> None:
    with connect() as client:
        study = client.ask_study(study_id, verb)
    show_value(study, as_json, f"{study['id']} {_line(study)}, {verb} requested")


def _line(study: dict[str, Any]) -> str:
    return f"{study['state']}: {', '.join(f'{count} {state}' for state, count in study['jobs'].items())}"


def _show(study: dict[str, Any], as_json: bool) -> None:
    if as_json:
        show_value(study, True, "")
        return
    out.print(f"[bold]{escape(study['name'])}[/] {study['id']} {_line(study)}", highlight=False)
    for finding in study["findings"]:
        out.print(f"  [{_COLORS.get(finding['verdict'], 'yellow')}]{escape(finding['sentence'])}[/]", highlight=False)
    metrics = study["spec"]["metrics"]
    table = Table(*study["spec"]["grid"], *metrics, "failed", box=None)
    for row in study["table"]:
        point = map(escape, row["point"].values())
        table.add_row(*point, *(_cell(row["metrics"][name]) for name in metrics), str(row["failed"]))
    out.print(table)
    for child in study["children"]:
        if child["state"] in ("failed", "cancelled", "deleted"):
            about = escape(f"{child['name']} {child['job_id']} {child['message']}")
            out.print(f"[red]{child['state']}[/] {about}", highlight=False)
    if study["mlflow"]["url"]:
        out.print(f"MLflow run   {study['mlflow']['url']}", highlight=False, soft_wrap=True)


def _cell(found: dict[str, Any] | None) -> str:
    if found is None:
        return "none"
    return f"{found['mean']:.4g}" + ("" if found["std"] is None else f" ± {found['std']:.2g}")
