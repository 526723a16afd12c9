"""What all commands share: the two consoles, exit codes, a client whose errors end the command."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import typer
from rich.console import Console, RenderableType

from service.client import Client, ProblemError, ServiceUnreachableError
from service.commands.specfile import SpecFileError

JOB_FAILED, WRONG_USE, UNREACHABLE, NOT_ALLOWED = 1, 2, 3, 4
_PIPED_COLUMNS = 1000
"""Wide enough for any row: what another program reads has a line a row."""
out = Console(width=None if sys.stdout.isatty() else _PIPED_COLUMNS)
err = Console(stderr=True)


@contextmanager
def connect() -> Iterator[Client]:
    """A client whose errors end the command with their exit code."""
    try:
        with Client() as client:
            yield client
    except ServiceUnreachableError as error:
        fail(str(error), UNREACHABLE)
    except ProblemError as error:
        fail(str(error), NOT_ALLOWED if error.status in (401, 403) else WRONG_USE)
    except SpecFileError as error:
        fail(str(error), WRONG_USE)


def show_value(value: Any, as_json: bool, text: RenderableType) -> None:
    """`value` for programs, or `text` for people."""
    if as_json:
        print(json.dumps(value, indent=2))
    elif isinstance(text, str):
        print(text)
    else:
        out.print(text)


def fail(message: str, code: int) -> NoReturn:
    err.print(message, style="red", highlight=False, markup=False, soft_wrap=True)
    raise typer.Exit(code)
