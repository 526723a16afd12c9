"""`syncnorm`: the operations of the API as commands.

Exit codes: 0 success, 1 the job failed, 2 wrong usage, 3 the service is unreachable, 4 refused, 5 timed out,
70 a bug of this program, 130 Ctrl-C, 141 the reader of a pipe left.
"""

from __future__ import annotations

import os
import sys
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from syncnorm import __version__
from syncnorm.service.cli.commands import (
    audit,
    catalog,
    downloads,
    exports,
    host,
    jobs,
    listing,
    prediction,
    profiling,
    records,
)
from syncnorm.service.cli.commands import job_verbs as verbs
from syncnorm.service.cli.commands.studies import study_app
from syncnorm.service.cli.commands.tokens import token_app
from syncnorm.service.cli.commands.uploads import package_app, secret_app
from syncnorm.service.cli.terminal import CRASHED, INTERRUPTED, PIPE_CLOSED, WRONG_USE, err
from syncnorm.trainer.contract.text import visible


class Commands(TyperGroup):
    """Runs a command and ends with its exit code. 1 means that a job failed, so a crash never ends with 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except (typer.Exit, typer.TyperException):
            raise
        except BrokenPipeError as error:
            _forget_stdout()
            raise typer.Exit(PIPE_CLOSED) from error
        except (KeyboardInterrupt, EOFError, typer.Abort) as error:
            raise typer.Exit(INTERRUPTED) from error
        except Exception as error:
            raise typer.Exit(_print_error(error)) from error


def _forget_stdout() -> None:
    """The reader of standard output has gone: without this, Python would complain about the rest of the buffer at
    exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_error(error: Exception) -> int:
    """Print an unexpected error; returns the exit code."""
    if isinstance(error, OSError) and error.filename is not None:
        err.print(visible(f"{error.filename}: {error.strerror}"), style="red", soft_wrap=True)
        return WRONG_USE
    if os.environ.get("SYNCNORM_TRACEBACK"):
        traceback.print_exception(error)
        return CRASHED
    reason = (str(error).splitlines() or [""])[0][:300]
    err.print(
        visible(f"Internal error of syncnorm: {type(error).__name__}: {reason}"),
        "Set SYNCNORM_TRACEBACK=1 to see the traceback, and report it together with your command.",
        sep="\n",
        style="red",
        soft_wrap=True,
    )
    return CRASHED


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


app = typer.Typer(
    name="syncnorm",
    help="Distributed training with synchronized normalization.",
    epilog="Exit codes: 0 success, 1 the job failed, 2 wrong usage, 3 service unreachable, 4 refused, 5 timed out.",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
of_jobs = (
    jobs.app,
    listing.app,
    verbs.app,
    records.app,
    profiling.app,
    audit.app,
    downloads.app,
    exports.app,
    prediction.app,
)
for family in (*of_jobs, catalog.app, host.app):
    app.add_typer(family)
app.add_typer(study_app, name="study")
app.add_typer(package_app, name="package")
app.add_typer(secret_app, name="secret")
app.add_typer(token_app, name="token")


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Distributed training with synchronized normalization."""


def main() -> None:
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # for characters that the terminal can't show
    app(prog_name="syncnorm")


if __name__ == "__main__":
    main()
