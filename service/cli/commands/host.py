"""`syncnorm serve`, `doctor`, `version`: commands about the host you type them on."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from importlib.util import find_spec
from typing import Any

import typer

from syncnorm import __version__
from syncnorm.service.cli.arguments import AsJson
from syncnorm.service.cli.terminal import JOB_FAILED, WRONG_USE, fail, fit, out, show_value

app = typer.Typer()
_ONLY_IN = {"server": "fastapi_offline", "worker": "lightning", "medical": "nibabel"}
"""Extra -> a library that no other extra brings."""


@app.command()
def serve() -> None:
    """Run the service until Ctrl-C. It starts Ray, MLflow and a database itself, unless SYNCNORM_ variables name
    them."""
    require_extras("serve", "server", *(() if os.environ.get("SYNCNORM_RAY_ADDRESS") else ("worker",)))
    from syncnorm.service.api.auth import admin_file
    from syncnorm.service.backend_errors import DatabaseUnavailableError
    from syncnorm.service.confinement import notes
    from syncnorm.service.server import serve as run
    from syncnorm.service.settings import Settings
    from syncnorm.service.store.database import UnusableDatabaseError
    from syncnorm.service.telemetry import logging as logs

    logs.configure(sys.stderr)

    def ready(url: str, context: Any) -> None:
        url = context.settings.public_url or url
        out.print(f"syncnorm  {url}   (open it in a browser; API docs at {url}/docs)", soft_wrap=True)
        out.print(f"MLflow    {context.mlflow_uri}", soft_wrap=True)
        settings = context.settings
        for note in notes(settings, admin_file(settings.admin_token_file, settings.home)):
            out.print(note, soft_wrap=True)

    try:
        run(Settings.from_environment(), ready)
    except (ValueError, OSError) as error:
        fail(str(error), WRONG_USE)
    except (UnusableDatabaseError, DatabaseUnavailableError) as error:
        fail(str(error), JOB_FAILED)
    except KeyboardInterrupt:
        out.print("stopped")


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Check a running service: database, MLflow, Ray, storage, workers. Exit code 1 if something is wrong."""
    require_extras("doctor", "server")
    from syncnorm.service.cli.doctor import examine
    from syncnorm.service.settings import Settings

    failed = False
    try:
        for check in examine(Settings.from_environment()):
            failed = failed or check.problem is not None
            text = f"{'wrong' if check.problem else 'fine ':5}  {check.name}: {check.problem or check.detail}"
            print(json.dumps(asdict(check)) if as_json else fit(text), flush=True)
    except ValueError as error:
        fail(str(error), WRONG_USE)
    raise typer.Exit(JOB_FAILED if failed else 0)


@app.command()
def version(as_json: AsJson = False) -> None:
    """Print the version."""
    show_value({"version": __version__}, as_json, lambda found: found["version"])


def require_extras(command: str, *extras: str) -> None:
    """End the command as wrong use, saying what to install, unless these extras of the package are."""
    missing = [extra for extra in extras if find_spec(_ONLY_IN[extra]) is None]
    if missing:
        noun = "extra" if len(missing) == 1 else "extras"
        install = f"pip install 'syncnorm[{','.join(missing)}]'"
        fail(f"`syncnorm {command}` needs the {noun} {' and '.join(missing)}: {install}", WRONG_USE)
