"""`syncnorm predict`: apply the model of a job to a volume of yours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from syncnorm.import_path import python_path
from syncnorm.service.cli.arguments import AsJson, complete_job
from syncnorm.service.cli.commands.downloads import save_model
from syncnorm.service.cli.commands.host import require_extras
from syncnorm.service.cli.selection import job_id
from syncnorm.service.cli.terminal import CRASHED, WRONG_USE, connect, fail, show_value

app = typer.Typer()


class Windows(StrEnum):
    """How a volume is run."""

    SEPARATE = "separate"
    JOINT = "joint"


@app.command()
def predict(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A folder that `syncnorm get JOB -o DIR` filled, or a job, whose model is fetched then.",
            autocompletion=complete_job,
        ),
    ],
    volume: Annotated[
        list[str],
        typer.Argument(metavar="VOLUME", help="A NIfTI file or URL; several where each has one of the channels."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The mask to write, .nii or .nii.gz.")],
    *,
    windows: Annotated[
        Windows | None,
        typer.Option(
            help="separate: the exported file, window by window. joint: the trained network over the whole volume. "
            "Default: as the job was validated.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Segment a volume with a trained model. Needs no service if MODEL is a folder. The mask lies on the volume's own
    grid."""
    require_extras("predict", "worker", "medical")
    if Path(model).is_dir():
        show_value(_predict(Path(model), volume, output, windows), as_json, _sentence)
        return
    with tempfile.TemporaryDirectory() as folder:
        _fetch(model, Path(folder))
        show_value(_predict(Path(folder), volume, output, windows), as_json, _sentence)


def _fetch(job: str, folder: Path) -> None:
    with connect() as client:
        save_model(client, job_id(client, job), folder)


def _predict(folder: Path, volume: list[str], output: Path, windows: Windows | None) -> dict[str, Any]:
    """In a process of its own, because it needs torch."""
    how = windows or "-"
    command = [sys.executable, "-m", "syncnorm.trainer.prediction", str(folder), str(output), how, *volume]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=python_path(os.environ))
    if done.returncode:
        fail(done.stderr.strip()[-2000:], WRONG_USE if done.returncode == WRONG_USE else CRASHED)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _sentence(found: dict[str, Any]) -> str:
    total = sum(found["voxels"].values())
    shares = ", ".join(f"class {label} {count / total:.1%}" for label, count in found["voxels"].items())
    shape = " x ".join(map(str, found["shape"]))
    return f"{found['mask']}: {shape} voxels, axes {found['axes']}, by {found['windows']} windows, {shares}"
