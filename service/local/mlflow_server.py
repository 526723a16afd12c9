"""`python -m syncnorm.service.local.mlflow_server …`: MLflow's own command, with a check of Host and Origin.

MLflow accepts requests of every page on localhost, whatever its port, and lets it read and write (3.17). It opens every
address that a client names, see `mlflow_confinement`. Its pages show language models until somebody switches them to
model training. There is no option for any of these, so its application is wrapped before uvicorn starts it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, NoReturn
from urllib.parse import urlsplit

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from syncnorm.service.api.http.origin_guard import head_of
from syncnorm.service.local.mlflow_confinement import confine_artifacts, is_of_assistant
from syncnorm.service.origins import Trusted, find_refusal

_PUBLIC_URL = "SYNCNORM_MLFLOW_PUBLIC_URL"
"""Where browsers reach this server, if under another name than the allowed hosts."""
_ALLOWED, _ORIGINS = "MLFLOW_SERVER_ALLOWED_HOSTS", "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"
"""MLflow's own variables: names it answers to, and origins whose pages may write."""


_AS_TRAINING = (
    b"<script>for (const [key, value] of "
    b"[['workflowType', '\"machine_learning\"'], ['assistant.fab.autoOpenedOnFirstLoad', 'true']]) "
    b"localStorage.getItem(`mlflow.${key}_v1`) ?? localStorage.setItem(`mlflow.${key}_v1`, value)</script>"
)
"""Sets what the pages remember, in a browser that has not been there: the switch, and that the assistant's pane, which
opens by itself once, did."""


class TrainingPages:
    """Adds `_AS_TRAINING` to the one page that MLflow has."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "GET" or scope["path"] != "/":
            await self._app(scope, receive, send)
            return
        start: Message = {}
        body = b""

        async def changed(message: Message) -> None:
            nonlocal start, body
            if message["type"] == "http.response.start":
                start = message
            elif message["type"] == "http.response.body":
                body += message.get("body", b"")
                if not message.get("more_body", False):
                    await send(_with_length(start, body := body.replace(b"<head>", b"<head>" + _AS_TRAINING, 1)))
                    await send({"type": "http.response.body", "body": body})

        await self._app(_unconditional(scope), receive, changed)


def _unconditional(scope: Scope) -> Scope:
    """The request without what browsers know of MLflow's own file, and uncompressed."""
    kept = (b"if-none-match", b"if-modified-since", b"accept-encoding", b"range")
    return {**scope, "headers": [(name, value) for name, value in scope["headers"] if name not in kept]}


def _with_length(start: Message, body: bytes) -> Message:
    dropped = (b"content-length", b"etag", b"last-modified")
    headers = [(name, value) for name, value in start["headers"] if name.lower() not in dropped]
    return {**start, "headers": [*headers, (b"content-length", str(len(body)).encode())]}


class MlflowGuard:
    """Refuses requests of foreign web pages (see `syncnorm.service.origins`), and those to the assistant."""

    def __init__(self, app: ASGIApp, trusted: Trusted) -> None:
        self._app = app
        self._trusted = trusted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = find_refusal(head_of(scope), self._trusted) if scope["type"] == "http" else None
        if refusal is not None:
            await _problem("PERMISSION_DENIED", refusal.detail, refusal.status)(scope, receive, send)
        elif scope["type"] == "http" and is_of_assistant(scope["path"]):
            await _problem("ENDPOINT_NOT_FOUND", "The assistant of MLflow is off here.", 404)(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def _problem(code: str, message: str, status: int) -> JSONResponse:
    return JSONResponse({"error_code": code, "message": message}, status)


def guarded() -> ASGIApp:
    """What uvicorn runs, in each process of the server."""
    from mlflow.server.fastapi_app import app

    confine_artifacts()
    return MlflowGuard(TrainingPages(app), _trusted(os.environ))


def guarded_with_accounts() -> ASGIApp:
    """The same for `--app-name=basic-auth`."""
    from mlflow.server.auth import create_app

    confine_artifacts()
    return MlflowGuard(TrainingPages(create_app()), _trusted(os.environ))


_FACTORIES = {"mlflow.server.fastapi_app:app": guarded, "mlflow.server.auth:create_app": guarded_with_accounts}


def main() -> None:
    from mlflow import server as mlflow_server
    from mlflow.cli import cli

    os.environ.update(_with_public_url(os.environ))
    os.environ["MLFLOW_ENABLE_AI_GATEWAY"] = "false"  # it calls addresses that clients name
    server: Any = mlflow_server  # its own functions are replaced
    server._build_uvicorn_command = _wrapped(server._build_uvicorn_command)
    server._exec_cmd = _become
    sys.argv[0] = "mlflow"
    cli()


def _trusted(environ: Mapping[str, str]) -> Trusted:
    allowed = filter(None, environ.get(_ALLOWED, "").split(","))
    return Trusted.from_settings((), (environ.get(_PUBLIC_URL),), allowed)


def _with_public_url(environ: Mapping[str, str]) -> dict[str, str]:
    """Settings for MLflow's public URL, without which it refuses writes of its own pages under that name."""
    url = urlsplit(environ.get(_PUBLIC_URL) or "")
    if not url.netloc:
        return {}
    allowed = ",".join(filter(None, (environ.get(_ALLOWED), url.netloc)))
    return {_ALLOWED: allowed, _ORIGINS: f"{url.scheme}://{url.netloc}"}


def _wrapped(build: Callable[..., list[str]]) -> Callable[..., list[str]]:
    def command(options: Any, host: Any, port: Any, workers: Any, app: str, *_: Any) -> list[str]:
        return build(options, host, port, workers, f"{__spec__.name}:{_FACTORIES[app].__name__}", None, True)

    return command


def _become(command: list[str], *, extra_env: Mapping[str, str], **_: bool) -> NoReturn:
    """Run uvicorn in the place of this process, whose imports would take 190 MB as long as the server runs."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execvpe(command[0], command, {**os.environ, **extra_env})


if __name__ == "__main__":
    main()
