"""`syncnorm study …`"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from syncnorm.service.cli.arguments import AsJson, Settings
from syncnorm.service.cli.code_folder import with_package
from syncnorm.service.cli.formatting import local_time, number
from syncnorm.service.cli.job_files.job_file import load_study
from syncnorm.service.cli.selection import study_id
from syncnorm.service.cli.study_plan_table import study_plan_table
from syncnorm.service.cli.terminal import (
    FINE,
    INTERRUPTED,
    JOB_FAILED,
    WRONG_USE,
    connect,
    err,
    fail,
    out,
    show_value,
)
from syncnorm.service.client.client import Client
from syncnorm.trainer.contract.text import counted

study_app = typer.Typer(help="Run families of jobs, and compare them.", no_args_is_help=True)
StudyId = Annotated[
    str,
    typer.Argument(
        help="A study: its id, the first characters of its id, its name if only one study has it, or `last`.",
        metavar="STUDY",
    ),
]
_INSTEAD = {"resume": ", since none is paused. `retry` continues failed and cancelled ones"}
_POLL_S = 2.0
_FORMS = {".html": "html", ".png": "png", ".json": "json", ".csv": "csv"}
_COLORS = {"agrees": "green", "does not agree": "red"}
_VERBS = {
    "cancel": "Ask all unfinished jobs of a study to stop.",
    "pause": "Ask all jobs of a study to stop with a checkpoint. They continue once you resume it.",
    "resume": "Put all paused jobs of a study back into the queue.",
    "retry": "Put all failed and cancelled jobs of a study back into the queue.",
}


@study_app.command()
def submit(
    file: Annotated[Path, typer.Argument(help="YAML or JSON study file; - reads standard input.", metavar="FILE")],
    settings: Settings = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait until all jobs are finished.")] = False,
    as_json: AsJson = False,
) -> None:
    """Submit a study."""
    with connect() as client:
        study = client.submit_study(_study(client, file, settings))
        if not follow:
            show_value(study, as_json, lambda study: f"{study['id']} {_line(study)}")
            return
        try:
            study = _wait(client, study)
        except KeyboardInterrupt as error:
            err.print(f"The study continues. Look at it with: syncnorm study show {study['id']}", soft_wrap=True)
            raise typer.Exit(INTERRUPTED) from error
    show_value(study, as_json, _summary)
    raise typer.Exit(FINE if set(study["jobs"]) == {"succeeded"} else JOB_FAILED)


@study_app.command()
def plan(
    file: Annotated[Path, typer.Argument(help="YAML or JSON study file; - reads standard input.", metavar="FILE")],
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Show how many jobs a study file makes, and the plan of each combination, without submitting them. Exit code 2 if
    one has an error.
    """
    with connect() as client:
        study = client.plan_study(_study(client, file, settings))
        seed = study["spec"]["seeds"][0]
        jobs = [job for job in study["jobs"] if job["seed"] == seed]
        planned = [{"point": job["point"], "plan": client.plan(job["spec"])} for job in jobs]
    found = {"jobs": len(study["jobs"]), "seeds": study["spec"]["seeds"], "combinations": planned}
    show_value(found, as_json, study_plan_table)
    if any(one["severity"] == "error" for each in planned for one in each["plan"]["findings"]):
        raise typer.Exit(WRONG_USE)


def _study(client: Client, file: Path, settings: Settings) -> dict[str, Any]:
    study = load_study(file, settings or ())
    return {**study, "base": with_package(client, study["base"])} if "base" in study else study


def _wait(client: Client, study: dict[str, Any]) -> dict[str, Any]:
    """The study once all its jobs are finished."""
    its_id = study["id"]
    while study["state"] != "finished":
        time.sleep(_POLL_S)
        found = client.persist(lambda: client.study(its_id))
        if found["jobs"] != study["jobs"]:
            err.print(f"{study['id']} {_line(found)}")
        study = found
    return study


@study_app.command()
def ls(as_json: AsJson = False) -> None:
    """List studies, newest first."""
    with connect() as client:
        studies = list(client.studies())
    show_value(studies, as_json, lambda studies: "\n".join(map(_row, studies)))


@study_app.command()
def show(study: StudyId, as_json: AsJson = False) -> None:
    """Show a study: its findings and the comparison table."""
    with connect() as client:
        found = client.study(study_id(client, study))
    show_value(found, as_json, _summary)


@study_app.command()
def report(
    study: StudyId,
    to: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="File to write, ending in .html, .png, .json, or .csv (the values of each job). Default: STUDY.html.",
        ),
    ] = None,
    picture: Annotated[str, typer.Option(help="Picture in a .png: comparison, curves or heat_map.")] = "comparison",
    as_json: AsJson = False,
) -> None:
    """Write the report of a study to a file; with --json, print it."""
    if as_json:
        with connect() as client:
            print(client.study_report(study_id(client, study), "json").decode())
        return
    suffix = ".html" if to is None else to.suffix
    if suffix not in _FORMS:
        fail(f"-o must end in one of {', '.join(_FORMS)}, got {to}", WRONG_USE)
    with connect() as client:
        content = client.study_report(study_id(client, study), _FORMS[suffix], picture)
    path = to or Path(study.replace("/", "-") + ".html")
    path.write_bytes(content)
    out.print(str(path), soft_wrap=True)


@study_app.command()
def add_seeds(
    study: StudyId,
    seeds: Annotated[
        list[int], typer.Argument(help="Seeds, each a number of 0 to 4294967295.", metavar="SEED...", min=0)
    ],
    as_json: AsJson = False,
) -> None:
    """Run every combination of a study with more seeds. The new jobs differ from those it has in their seeds alone."""
    with connect() as client:
        its_id = study_id(client, study)
        before = sum(client.study(its_id)["jobs"].values())
        found = client.add_seeds(its_id, seeds)
    added = sum(found["jobs"].values()) - before
    said = f"{counted(added, 'job')} added" if added else "no job added, since it has these seeds"
    show_value(found, as_json, lambda found: f"{found['id']} {_line(found)}, {said}")


def _acts_on(verb: str, jobs: Mapping[str, int]) -> bool:
    """Whether a study has jobs that a verb changes, by the number of its jobs in each state."""
    if verb == "resume":
        return "paused" in jobs
    if verb == "retry":
        return not {"failed", "cancelled"}.isdisjoint(jobs)
    return bool(jobs.keys() - {"succeeded", "failed", "cancelled", "deleted"})


def _add(verb: str, about: str) -> None:
    def command(study: StudyId, as_json: AsJson = False) -> None:
        with connect() as client:
            its_id = study_id(client, study)
            has_any = _acts_on(verb, client.study(its_id)["jobs"])
            found = client.ask_study(its_id, verb)
        said = f"{verb} requested" if has_any else f"no job to {verb}{_INSTEAD.get(verb, '')}"
        show_value(found, as_json, lambda found: f"{found['id']} {_line(found)}, {said}")

    study_app.command(verb, help=about)(command)


for _verb, _about in _VERBS.items():
    _add(_verb, _about)


def _row(study: dict[str, Any]) -> str:
    return f"{study['id']}  {study['name']}  {_line(study)}  {local_time(study['created_at'])}"


def _line(study: dict[str, Any]) -> str:
    return f"{study['state']}: {', '.join(f'{count} {state}' for state, count in study['jobs'].items())}"


def _summary(study: dict[str, Any]) -> RenderableType:
    parts: list[RenderableType] = [Text.assemble((study["name"], "bold"), f" {study['id']} {_line(study)}")]
    for finding in study["findings"]:
        parts.append(Text(f"  {finding['sentence']}", style=_COLORS.get(finding["verdict"], "yellow")))
    parts.append(_comparison(study))
    parts.append(Text("mean ± standard deviation over seeds", style="dim"))
    parts += [Text(sentence, style="yellow") for sentence in study.get("missing", ())]
    for child in study["children"]:
        if child["state"] in ("failed", "cancelled", "deleted"):
            about = f" {child['name']} {child['job_id']} {child['message']}"
            parts.append(Text.assemble((child["state"], "red"), about))
    if study["mlflow"]["url"]:
        parts.append(Text(f"MLflow run   {study['mlflow']['url']}"))
    return Group(*parts)


def _comparison(study: dict[str, Any]) -> Table:
    metrics = study["spec"]["metrics"]
    table = Table(*study["spec"]["grid"], *metrics, "succeeded", box=None)
    for row in study["table"]:
        cells = (_cell(row["metrics"][name], row["succeeded"]) for name in metrics)
        table.add_row(*row["point"].values(), *cells, f"{row['succeeded']} of {row['jobs']}")
    return table


def _cell(found: dict[str, Any] | None, succeeded: int) -> str:
    if found is None:
        return "none"
    spread = "" if found["std"] is None else f" ± {number(found['std'], '.2g')}"
    count = f" ({found['count']} of {succeeded})" if found["count"] < succeeded else ""
    return number(found["mean"], ".4g") + spread + count
