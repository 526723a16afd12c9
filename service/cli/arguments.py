"""Arguments that several commands share, and their shell completion."""

from __future__ import annotations

from typing import Annotated

import typer

from syncnorm.service.cli.terminal import wants_json
from syncnorm.service.client.client import Client

_COMPLETION_S = 2.0
_MOST_COMPLETED = 50


def complete_job(incomplete: str) -> list[tuple[str, str]]:
    """For shell completion (`syncnorm --install-completion`): ids and names of the newest jobs that begin with the
    text."""
    try:
        with Client(timeout_s=_COMPLETION_S) as client:
            newest = [job for _, job in zip(range(_MOST_COMPLETED), client.jobs(limit=_MOST_COMPLETED), strict=False)]
        names = [job["name"] for job in newest]
        found = [(job["id"], f"{job['name']} {job['state']}") for job in newest]
        found += [(job["name"], job["state"]) for job in newest if names.count(job["name"]) == 1]
        found += [("last", "the newest job")] if newest else []
        return [(word, about) for word, about in found if incomplete and word.startswith(incomplete)] or (
            [] if incomplete else found[: len(newest)]
        )
    except Exception:  # nothing may be printed during shell completion
        return []


def _remember(as_json: bool) -> bool:
    wants_json.set(as_json)
    return as_json


Job = Annotated[
    str,
    typer.Argument(
        help="A job: its id, the first characters of its id, its name if only one job has it, or `last`.",
        metavar="JOB",
        autocompletion=complete_job,
    ),
]
Jobs = Annotated[
    list[str] | None,
    typer.Argument(
        help="Jobs: ids, first characters of ids, names, or `last`.", metavar="JOB", autocompletion=complete_job
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Change a value of the file, for example norm.kind=group."),
]
AsJson = Annotated[bool, typer.Option("--json", callback=_remember, help="Print JSON for programs, also for errors.")]
Labels = Annotated[list[str] | None, typer.Option("--label", help="key:value; may be given several times.")]
