"""`syncnorm package` and `syncnorm secret`: code and secrets that jobs need besides their file."""

from __future__ import annotations

import io
import sys
import zipfile
from pathlib import Path
from typing import Annotated

import typer

from syncnorm.service.cli.arguments import AsJson
from syncnorm.service.cli.formatting import local_time
from syncnorm.service.cli.terminal import WRONG_USE, connect, err, fail, show_value
from syncnorm.trainer.contract.text import visible

package_app = typer.Typer(help="Upload code for the workers.", no_args_is_help=True)
secret_app = typer.Typer(help="Store secret values for the environment of jobs.", no_args_is_help=True)
MAX_BYTES = 128 * 2**20
"""The limit of `syncnorm.service.storage.code_packages`."""
_EPOCH = (1980, 1, 1, 0, 0, 0)
SecretName = Annotated[str, typer.Argument(help="Name, as in `env: {VARIABLE: {secret: NAME}}`.")]


@package_app.command("put")
def put_package(
    folder: Annotated[str, typer.Argument(help="Folder that holds the Python packages.", metavar="FOLDER")],
    as_json: AsJson = False,
) -> None:
    """Upload a folder of code; prints what a job file names as code.package."""
    if not folder.strip() or not Path(folder).is_dir():  # an empty text would mean the current folder
        fail(f"{folder!r} must be a folder.", WRONG_USE)
    try:
        archive = pack(Path(folder))
    except ValueError as error:
        fail(str(error), WRONG_USE)
    with connect() as client:
        found = client.put_package(archive)
    for hint in found.get("hints", []):
        err.print(visible(f"{hint}."), style="yellow", soft_wrap=True)
    show_value(found, as_json, lambda found: found["package"])


@secret_app.command("put")
def put_secret(name: SecretName) -> None:
    """Store a secret. You are asked for its value, or it is read from standard input, so that no shell history keeps
    it."""
    value = typer.prompt("Value", hide_input=True) if sys.stdin.isatty() else sys.stdin.read().rstrip("\n")
    with connect() as client:
        client.put_secret(name, value)


@secret_app.command("ls")
def list_secrets(as_json: AsJson = False) -> None:
    """List the names of your secrets."""
    with connect() as client:
        found = client.secrets()
    show_value(
        found, as_json, lambda found: "\n".join(f"{one['name']}  {local_time(one['updated_at'])}" for one in found)
    )


@secret_app.command("rm")
def delete_secret(name: SecretName) -> None:
    """Remove a secret."""
    with connect() as client:
        client.delete_secret(name)


def pack(folder: Path) -> bytes:
    """A zip of a folder without hidden files and caches. The same files give the same bytes, so the same digest.

    Raises: ValueError for more than the service accepts.
    """
    made, size = io.BytesIO(), 0
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder)
            hidden = any(part.startswith(".") or part == "__pycache__" for part in name.parts)
            if path.is_file() and not path.is_symlink() and not hidden:
                size += path.stat().st_size
                if size > MAX_BYTES:
                    raise ValueError(f"{folder} must not hold more than {MAX_BYTES >> 20} MiB. Keep data out of it.")
                entry = zipfile.ZipInfo(name.as_posix(), _EPOCH)
                entry.external_attr = 0o644 << 16
                archive.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED)
    return made.getvalue()
