"""Shared by all commands: consoles, exit codes, a client whose errors end the command, text that is safe to print."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NoReturn, TypeVar

import typer
from rich.console import Console, RenderableType
from rich.table import Table

from syncnorm.service.cli.job_files.yaml_reader import SpecFileError
from syncnorm.service.client.client import (
    Client,
    ClientError,
    ProblemError,
    ServiceTimeoutError,
    ServiceUnreachableError,
)
from syncnorm.trainer.contract.text import visible

T = TypeVar("T")
FINE, JOB_FAILED, WRONG_USE, UNREACHABLE, NOT_ALLOWED, TIMED_OUT = range(6)
CRASHED, INTERRUPTED, PIPE_CLOSED = 70, 130, 141
ANY_COLUMNS = 1000
"""Wide enough for any row: other programs read one row per line."""


class Screen(Console):
    """A console that prints text as it is: no markup, emoji or highlighting."""

    def __init__(self, *, stderr: bool = False, width: int | None = None) -> None:
        super().__init__(stderr=stderr, width=width, markup=False, emoji=False, highlight=False)

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


wants_json: ContextVar[bool] = ContextVar("wants_json", default=False)
"""Whether the command has --json: then its errors are JSON, too."""
out = Screen(width=None if sys.stdout.isatty() else ANY_COLUMNS)
err = Screen(stderr=True)


@contextmanager
def connect() -> Iterator[Client]:
    """A client whose errors end the command with their exit code."""
    try:
        with Client() as client:
            client.connection.on_lost = lambda message: err.print(visible(message), style="yellow", soft_wrap=True)
            yield client
    except (ClientError, SpecFileError) as error:
        fail_with(error)


def exit_code(error: Exception) -> int:
    """The exit code of an error."""
    if isinstance(error, ServiceTimeoutError):
        return TIMED_OUT
    if isinstance(error, ServiceUnreachableError):
        return UNREACHABLE
    if isinstance(error, ProblemError):
        if error.status in (401, 403, 429):
            return NOT_ALLOWED
        return UNREACHABLE if error.status >= 500 else WRONG_USE
    return WRONG_USE


def fail_with(error: Exception) -> NoReturn:
    """Print an error and end the command."""
    report(error)
    raise typer.Exit(exit_code(error))


def fail(message: str, code: int) -> NoReturn:
    complain(message, {"detail": message, "code": "wrong_use" if code == WRONG_USE else "failed"})
    raise typer.Exit(code)


def report(error: Exception) -> None:
    """Print an error."""
    known = {ServiceTimeoutError: "timed_out", ServiceUnreachableError: "unreachable"}
    code = next((code for kind, code in known.items() if isinstance(error, kind)), "wrong_use")
    problem = error.problem if isinstance(error, ProblemError) else {"detail": str(error), "code": code}
    complain(str(error), problem)


def complain(message: str, problem: Mapping[str, Any]) -> None:
    """`message` for people, or under --json `problem` for programs (RFC 9457); on standard error."""
    if wants_json.get():
        print(json.dumps({"type": "about:blank", **problem}), file=sys.stderr)
    else:
        err.print(visible(message), style="red", soft_wrap=not err.is_terminal)


def show_value(value: T, as_json: bool, show: Callable[[T], RenderableType], console: Console | None = None) -> None:
    """`value` for programs, or what `show` makes of it for people. console: where it goes; None: standard output."""
    if as_json:
        print(json.dumps(value, indent=2))
        return
    shown, screen = show(fit(value)), console or out
    if screen.is_terminal:
        screen.print(shown, soft_wrap=not isinstance(shown, Table))
        return
    with screen.capture() as lines:
        screen.print(shown, soft_wrap=not isinstance(shown, Table))
    for line in lines.get().splitlines():  # a table fills its last column
        screen.print(line.rstrip(), soft_wrap=True)


def fit(value: T, console: Console | None = None) -> T:
    """A JSON value whose texts a terminal shows and doesn't obey. Piped output stays as it is. console: where it goes;
    None: standard output."""
    fitting: T = _fit(value) if (console or out).is_terminal else value
    return fitting


def _fit(value: Any) -> Any:
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, Mapping):
        return {_fit(key): _fit(item) for key, item in value.items()}
    return [_fit(item) for item in value] if isinstance(value, list | tuple) else value
