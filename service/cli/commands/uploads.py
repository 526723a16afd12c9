"""`syncnorm package` and `syncnorm secret`: code and secrets that jobs need besides their file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from syncnorm.service.cli.arguments import AsJson
from syncnorm.service.cli.code_folder import upload
from syncnorm.service.cli.formatting import local_time
from syncnorm.service.cli.terminal import WRONG_USE, connect, fail, show_value

package_app = typer.Typer(help="Upload code for the workers.", no_args_is_help=True)
secret_app = typer.Typer(help="Store secret values for the environment of jobs.", no_args_is_help=True)
SecretName = Annotated[str, typer.Argument(help="Name, as in `env: {VARIABLE: {secret: NAME}}`.")]


@package_app.command("put")
def put_package(
    folder: Annotated[str, typer.Argument(help="Folder that holds the Python packages.", metavar="FOLDER")],
    as_json: AsJson = False,
) -> None:
    """Upload a folder of code; prints what a job file names as code.package."""
    if not folder.strip() or not Path(folder).is_dir():  # an empty text would mean the current folder
        fail(f"{folder!r} must be a folder.", WRONG_USE)
    with connect() as client:
        try:
            found = upload(client, Path(folder))
        except ValueError as error:
            fail(str(error), WRONG_USE)
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
