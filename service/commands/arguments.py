"""Arguments that many verbs take."""

from __future__ import annotations

from typing import Annotated

import typer

from service.client import Client, ProblemError, ServiceUnreachableError


def complete_job(incomplete: str) -> list[tuple[str, str]]:
    """For shell completion (`syncnorm --install-completion`): the newest jobs that begin so, with name and state."""
    try:
        with Client(timeout_s=2) as client:
            newest = zip(range(50), client.jobs(limit=50), strict=False)
            return [
                (job["id"], f"{job['name']} {job['state']}") for _, job in newest if job["id"].startswith(incomplete)
            ]
    except (ServiceUnreachableError, ProblemError):
        return []


JobId = Annotated[str, typer.Argument(help="Job id, e.g. job_01h…", autocompletion=complete_job)]
Settings = Annotated[
    list[str], typer.Option("--set", default_factory=list, help="Change a value of the file, e.g. norm.kind=group.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
