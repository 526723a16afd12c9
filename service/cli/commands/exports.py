"""`syncnorm export`: export a finished job again. `exports`: list all of its exports."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated, Any

import typer

from syncnorm.service.cli.arguments import AsJson, Job
from syncnorm.service.cli.selection import job_id
from syncnorm.service.cli.terminal import FINE, INTERRUPTED, JOB_FAILED, connect, err, show_value
from syncnorm.service.client.client import Client
from syncnorm.service.integrations.mlflow_note import certificate_line

_POLL_S = 1.0
_OVER = ("succeeded", "failed", "skipped")

app = typer.Typer()


@app.command()
def export(
    job: Job,
    *,
    formats: Annotated[
        list[str] | None, typer.Option("--format", help="pt2 or onnx; may be given twice. Default: both.")
    ] = None,
    fold: Annotated[
        bool, typer.Option("--fold/--no-fold", help="Fold normalization layers into their neighbours.")
    ] = True,
    register_as: Annotated[str | None, typer.Option(help="Name in MLflow's model registry.")] = None,
    checkpoint: Annotated[
        str | None, typer.Option(metavar="best|last|STEP", help="Whose weights: of this checkpoint. Default: last.")
    ] = None,
    statistics: Annotated[
        str | None, typer.Option(metavar="auto|population|running", help="Statistics of batch normalizations.")
    ] = None,
    module: Annotated[
        str | None, typer.Option(help="Path of the submodule to export alone, like net.backbone.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Wait until it is finished.")] = False,
    as_json: AsJson = False,
) -> None:
    """Export a finished job again, from its published weights or a checkpoint."""
    step = int(checkpoint) if checkpoint is not None and checkpoint.isdigit() else checkpoint
    with connect() as client:
        one = job_id(client, job)
        made = client.export(
            one,
            formats=formats,
            fold=fold,
            register_as=register_as,
            checkpoint=step,
            statistics=statistics,
            module=module,
        )
        if follow:
            err.print(f"export {made['name']} (Ctrl-C leaves it running)")
            try:
                made = wait(client, one, made["name"])
            except KeyboardInterrupt as error:
                err.print("The export continues.")
                raise typer.Exit(INTERRUPTED) from error
    show_value(made, as_json, sentence)
    raise typer.Exit(JOB_FAILED if made["state"] == "failed" else FINE)


@app.command()
def exports(job: Job, as_json: AsJson = False) -> None:
    """List the exports of a job, its own first."""
    with connect() as client:
        found = client.exports(job_id(client, job))
    show_value(found, as_json, lambda found: "\n".join(map(sentence, found)))


def wait(client: Client, job_id: str, name: str, rest: Callable[[float], None] = time.sleep) -> dict[str, Any]:
    """The export once it is finished."""
    while (found := client.persist(lambda: client.one_export(job_id, name)))["state"] not in _OVER:
        rest(_POLL_S)
    return found


def sentence(export: dict[str, Any]) -> str:
    """The result of an export, in a line or two."""
    lines = [f"export {export['name']} {export['state']} {export['message']}".rstrip()]
    if export["certificate"]:
        lines.append(f"Model        {export['uri'] or 'none in MLflow, its files are in the run'}")
        lines += [f"Registered   {export['registered']}"] if export["registered"] else []
        lines.append(f"Certificate  {certificate_line(export['certificate'])}")
    return "\n".join(lines)
