"""`python -m service.mlflow_server …`: MLflow's own command, whose server answers no page but its own.

MLflow takes every page on localhost, whatever its port, for one of its own, and lets it read and write (3.17). There is
no option for that, so its application is wrapped before uvicorn starts it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from service.middleware import head_of
from service.origins import Trusted, find_refusal

_ALLOWED = "MLFLOW_SERVER_ALLOWED_HOSTS"
"""MLflow's own variable, which its option --allowed-hosts sets."""


class MlflowGuard:
    """Refuses what a page of somebody else sent; see `service.origins`."""

    def __init__(self, app: ASGIApp, trusted: Trusted) -> None:
        self._app = app
        self._trusted = trusted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = find_refusal(head_of(scope), self._trusted) if scope["type"] == "http" else None
        if refusal is not None:
            error = {"error_code": "PERMISSION_DENIED", "message": refusal.detail}
            await JSONResponse(error, refusal.status)(scope, receive, send)
            return
        await self._app(scope, receive, send)


def guarded() -> ASGIApp:
    """What uvicorn runs, in each process of the server."""
    from mlflow.server.fastapi_app import app

    allowed = filter(None, os.environ.get(_ALLOWED, "").split(","))
    return MlflowGuard(app, Trusted.from_settings((), (), allowed))


def main() -> None:
    from mlflow import server
    from mlflow.cli import cli

    server._build_uvicorn_command = _wrapped(server._build_uvicorn_command)
    sys.argv[0] = "mlflow"
    cli()


def _wrapped(build: Callable[..., list[str]]) -> Callable[..., list[str]]:
    def command(options: Any, host: Any, port: Any, workers: Any, _app: Any, *_: Any) -> list[str]:
        return build(options, host, port, workers, f"{__spec__.name}:{guarded.__name__}", None, True)

    return command


if __name__ == "__main__":
    main()
