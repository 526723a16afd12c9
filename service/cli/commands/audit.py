"""`syncnorm audit`: who did what, when, from which token."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import islice
from typing import Annotated, Any

import typer

from syncnorm.service.cli.arguments import AsJson
from syncnorm.service.cli.terminal import connect, fit

app = typer.Typer()


@app.command()
def audit(
    *,
    actor: Annotated[str | None, typer.Option(help="Only actions of this owner, or with the token of this id.")] = None,
    action: Annotated[
        str | None, typer.Option(help="Only these actions, for example job.cancel, token or auth.failed.")
    ] = None,
    obj: Annotated[
        str | None, typer.Option("--object", help="Only actions on the job, study, token or package with this id.")
    ] = None,
    since: Annotated[
        str | None, typer.Option(help="Only at this time or later, for example 2026-11-28T00:00:00Z.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Only before this time, for example 2026-11-28T00:00:00Z.")] = None,
    limit: Annotated[int, typer.Option("-n", "--limit", min=1, help="Most entries to print.")] = 50,
    as_json: AsJson = False,
) -> None:
    """Show who did what, newest first. For admins."""
    with connect() as client:
        found = client.audit(actor=actor, action=action, object=obj, since=since, until=until)
        for entry in islice(found, limit):
            print(json.dumps(entry) if as_json else as_text(fit(entry)), flush=True)


def as_text(entry: Mapping[str, Any]) -> str:
    actor = entry["actor"]
    who = actor["owner"] or ("nobody" if actor["kind"] == "user" else actor["kind"])
    token = f" (token {actor['token_id']})" if actor["token_id"] else ""
    times = f" {entry['count']} times" if entry["count"] > 1 else ""
    outcome = "" if entry["outcome"] == "done" else f" {entry['outcome']}{times}"
    why = f": {entry['detail']}" if entry["detail"] else ""
    return f"{entry['at']} {who}{token} {entry['action']} {entry['object']}{outcome}{why}{_changes(entry)}"


def _changes(entry: Mapping[str, Any]) -> str:
    before, after = entry["before"] or {}, entry["after"] or {}
    parts = [
        f"{name}={json.dumps(after[name])}" + (f" (was {json.dumps(before[name])})" if name in before else "")
        for name in after
    ]
    return "  " + " ".join(parts) if parts else ""
