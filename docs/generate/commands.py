"""The page of the command line's verbs and options, from their help."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import typer.main

from docs.generate.markdown import fence, generated, joined, table
from syncnorm.service.cli.main import app

INTRO = """
Every verb of `syncnorm` with its arguments and options, as `syncnorm VERB --help` has them. How you name a job, write a
job file and read an exit code is in [The command line](command-line.md).
"""


def commands() -> str:
    sections = [generated("Verbs and options", "the commands in service/cli/", INTRO)]
    for words, command in _verbs("syncnorm", typer.main.get_command(app)):
        sections += _section(words, command)
    return "\n\n".join(sections)


def _verbs(prefix: str, group: Any) -> Iterator[tuple[str, Any]]:
    """Every verb with its words, such as `syncnorm study ls`."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _verbs(f"{prefix} {name}", command)
        else:
            yield f"{prefix} {name}", command


def _section(words: str, command: Any) -> Iterator[str]:
    yield f"## `{words}`"
    yield joined(inspect.cleandoc(command.help or ""))
    arguments = [one for one in command.params if not one.opts[0].startswith("-")]
    options = [one for one in command.params if one.opts[0].startswith("-") and not getattr(one, "hidden", False)]
    usage = [words, *(["[OPTIONS]"] if options else []), *(_argument(one) for one in arguments)]
    yield fence(" ".join(usage))
    rows = [(f"`{_argument(one)}`", joined(one.help or "")) for one in arguments]
    rows += [(_option(one), joined(one.help or "") + _default(one)) for one in options]
    yield from [table(("argument or option", "what it does"), rows)] if rows else ()


def _argument(one: Any) -> str:
    name = one.metavar or one.name.upper()
    name = f"{name}…" if one.nargs == -1 else name
    return name if one.required else f"[{name}]"


def _option(one: Any) -> str:
    value = "" if one.is_flag else f" {one.metavar or one.name.upper()}"
    return ", ".join(f"`{name}{value}`" for name in (*one.opts, *one.secondary_opts))


def _default(one: Any) -> str:
    has_one = one.default not in (None, False, [], (), "") and not callable(one.default) and one.default is not ...
    return f" Default: {one.default}." if has_one and not one.is_flag else ""
