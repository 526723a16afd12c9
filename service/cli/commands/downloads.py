"""`syncnorm files`, `get`: list the files of a job, and save its model or others of them."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from syncnorm.service.cli.arguments import AsJson, Job
from syncnorm.service.cli.commands import exports
from syncnorm.service.cli.selection import job_id
from syncnorm.service.cli.tables import files_table
from syncnorm.service.cli.terminal import INTERRUPTED, JOB_FAILED, WRONG_USE, connect, err, fail, fit, show_value
from syncnorm.service.client.client import TERMINAL, Client
from syncnorm.trainer.contract.text import name_some, visible

Json = dict[str, Any]
app = typer.Typer()
WEIGHTS, PLAIN, ABOUT, PROOF = "weights.safetensors", "plain.safetensors", "model.json", "certificate.json"
_GLOB = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Wanted:
    """A file of the job, and its name below the folder it is saved in."""

    file: Json
    name: str


@app.command()
def files(job: Job, as_json: AsJson = False) -> None:
    """List the files of a job: its model, checkpoints and records."""
    with connect() as client:
        found = list(client.files(job_id(client, job)))
    show_value(found, as_json, files_table)


@app.command()
def get(
    job: Job,
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PATH", help="Files or folders that `syncnorm files` lists, or globs. Default: the model."
        ),
    ] = None,
    *,
    checkpoint: Annotated[
        str | None,
        typer.Option(metavar="best|last|STEP", help="The model of this checkpoint. It is exported first, if need be."),
    ] = None,
    folder: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Where to save. Default: the current folder.")
    ] = Path(),
    plain: Annotated[
        bool, typer.Option("--plain", help="Weights for the original classes, as before normalization was converted.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Save the model of a job: weights, their description, the certificate and the exported forms. Or other files of
    it."""
    if paths and (checkpoint or plain):
        fail("--checkpoint and --plain choose a model, so they can't be combined with paths.", WRONG_USE)
    with connect() as client:
        one = job_id(client, job)
        wanted = _named(client, one, paths) if paths else _model(client, one, checkpoint, plain)
        saved = [_saved(client, one, each, folder) for each in wanted]
    show_value(saved, as_json, lambda saved: "\n".join(each["to"] for each in saved))


def save_model(client: Client, job: str, folder: Path) -> None:
    """The files of the job's own export, as far as they are certified."""
    for each in _model(client, job, None, False):
        _saved(client, job, each, folder)


def _named(client: Client, job: str, paths: Sequence[str]) -> list[Wanted]:
    """As `cp -r` would name them."""
    there = list(client.files(job))
    found = {each.file["path"]: each for path in paths for each in _matching(there, path)}
    names = [each.name for each in found.values()]
    if twice := [name for name in names if names.count(name) > 1]:
        fail(f"Two of these files would be saved as {twice[0]}. Get each into a folder of its own (-o).", WRONG_USE)
    return list(found.values())


def _matching(there: Sequence[Json], wanted: str) -> list[Wanted]:
    path = wanted.strip("/")
    parts = path.split("/")
    fixed = next((at for at, part in enumerate(parts) if _GLOB.search(part)), len(parts) - 1)
    above = "".join(f"{part}/" for part in parts[:fixed])
    found = [
        Wanted(file, file["path"].removeprefix(above))
        for file in there
        if file["path"] == path or file["path"].startswith(f"{path}/") or fnmatchcase(file["path"], path)
    ]
    if not found:
        known = name_some([file["path"] for file in there], 8) or "none"
        fail(f"The job has no file {wanted!r}. It has: {known}. `syncnorm files JOB` lists all.", WRONG_USE)
    return found


def _model(client: Client, job: str, checkpoint: str | None, plain: bool) -> list[Wanted]:
    """The files of the export with these weights."""
    prefix = "export/" if checkpoint is None else _export_of(client, job, _read_checkpoint(checkpoint))
    found = {file["path"].removeprefix(prefix): file for file in client.files(job, prefix)}
    if WEIGHTS not in found:
        fail(_no_model(client, job), WRONG_USE)
    if plain and PLAIN not in found:
        fail(_why_not_plain(client, job, prefix), WRONG_USE)
    chosen = [PLAIN, ABOUT] if plain else _certified(client, job, prefix, list(found))
    return [Wanted(found[name], name) for name in chosen if name in found]


def _certified(client: Client, job: str, prefix: str, names: Sequence[str]) -> list[str]:
    """Exported forms only if they answer as the trained model does."""
    if _read(client, job, f"{prefix}{PROOF}").get("passed"):
        return [name for name in names if name != PLAIN]
    own = prefix == "export/"
    export = client.job(job).get("export") if own else client.one_export(job, prefix.split("/")[1])
    message = (export or {}).get("message", "")
    err.print(visible(f"There is no certified export, only weights. {message}").rstrip(), soft_wrap=True)
    return [WEIGHTS, ABOUT, PROOF]


def _read_checkpoint(text: str) -> str | int:
    if text.isascii() and text.isdigit():
        return int(text)
    if text not in ("best", "last"):
        fail(f"--checkpoint must be best, last or a step, got {text}.", WRONG_USE)
    return text


def _export_of(client: Client, job: str, wanted: str | int) -> str:
    """Where the files of an export of this checkpoint are; it is made if there is none."""
    view = client.job(job)
    if view["state"] != "succeeded":
        fail(_no_model(client, job), WRONG_USE)
    there = client.checkpoints(job)
    later = [one for one in client.exports(job) if one["name"] != "1"]
    made = [("export", _which(client, job)), *((one["path"], one["export"].get("checkpoint")) for one in later)]
    for path, which in made:
        if _step(which, there) == _step(wanted, there) and _has(client, job, f"{path}/{WEIGHTS}"):
            return f"{path}/"
    return _made(client, job, wanted, view["spec"].get("export") or {})


def _which(client: Client, job: str) -> str | int | None:
    """The checkpoint whose weights the job itself has published; None if it is not said."""
    about = _read(client, job, f"export/{ABOUT}").get("checkpoint") or {"which": "last"}
    which: str | int | None = about.get("which")
    return which


def _step(which: str | int | None, there: Sequence[Json]) -> str | int | None:
    """The step of a checkpoint, as far as it is known."""
    if which == "last":
        return max((one["step"] for one in there), default=which)
    if which == "best":
        return next((one["step"] for one in there if one.get("best")), which)
    return which


def _made(client: Client, job: str, wanted: str | int, like: Json) -> str:
    """Export this checkpoint as the job itself was exported."""
    options = {name: like[name] for name in ("formats", "fold", "statistics", "module") if name in like}
    made = client.export(job, checkpoint=wanted, **options)
    shown = f"of step {wanted}" if isinstance(wanted, int) else wanted
    err.print(f"exporting the {shown} checkpoint first (Ctrl-C leaves it running)")
    try:
        done = exports.wait(client, job, made["name"])
    except KeyboardInterrupt as error:
        err.print("The export continues.")
        raise typer.Exit(INTERRUPTED) from error
    if done["state"] == "failed" and not _has(client, job, f"{done['path']}/{WEIGHTS}"):
        fail(f"Export {done['name']} failed: {done['message']}", JOB_FAILED)
    return f"{done['path']}/"


def _no_model(client: Client, job: str) -> str:
    """Why there are no weights, and what there is instead."""
    view, steps = client.job(job), [str(one["step"]) for one in client.checkpoints(job)]
    if view["state"] not in TERMINAL:
        text = f"Job {job} is {view['state']}: its model is there once it has succeeded (syncnorm watch {job})."
    else:
        text = f"Job {job} has {view['state']} and published no model."
    if not steps:
        return text
    return f"{text} Its checkpoints are of step {name_some(steps, 5)}: syncnorm get {job} checkpoints/{steps[0]}."


def _why_not_plain(client: Client, job: str, prefix: str) -> str:
    plain = _read(client, job, f"{prefix}{ABOUT}").get("plain")
    if plain is None:
        return (
            f"Job {job} was published by a version that wrote no plain weights. Export it again, then take those: "
            f"syncnorm export {job} --follow, and syncnorm get {job} exports/2/{PLAIN}."
        )
    return f"The weights have no plain form. {plain.get('reason', '')}"


def _read(client: Client, job: str, path: str) -> Json:
    """A small JSON file of the job; empty without one."""
    if not _has(client, job, path):
        return {}
    with tempfile.TemporaryDirectory() as folder:
        content: Json = json.loads(client.download(job, path, folder).read_bytes())
    return content


def _has(client: Client, job: str, path: str) -> bool:
    return any(file["path"] == path for file in client.files(job, path))


def _saved(client: Client, job: str, wanted: Wanted, folder: Path) -> Json:
    file = wanted.file
    with _shown(fit(wanted.name, err)) as tell:
        to = client.download(job, file["path"], folder / wanted.name, on_progress=tell)
    return {"path": file["path"], "to": str(to), "size_bytes": file["size_bytes"], "digest": file["digest"]}


@contextmanager
def _shown(name: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar, on a terminal."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, disable=not err.is_terminal) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, size: bar.update(task, completed=done, total=size)
