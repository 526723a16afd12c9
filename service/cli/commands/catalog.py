"""`syncnorm norms`, `models`, `datasets`: names that a job may use. `cluster`: hosts and their capacity."""

from __future__ import annotations

from typing import Any

import typer
from rich.console import RenderableType

from syncnorm.service.cli.arguments import AsJson
from syncnorm.service.cli.tables import nodes_table
from syncnorm.service.cli.terminal import connect, show_value

app = typer.Typer()


@app.command()
def norms(as_json: AsJson = False) -> None:
    """List the normalization kinds a job may name."""
    with connect() as client:
        found = client.norms()
    show_value(found, as_json, _lines)


@app.command()
def models(as_json: AsJson = False) -> None:
    """List the built-in models; with --json, the arguments they take."""
    with connect() as client:
        found = client.models()
    show_value(found, as_json, _lines)


@app.command()
def datasets(as_json: AsJson = False) -> None:
    """List the built-in data; with --json, the arguments they take."""
    with connect() as client:
        found = client.datasets()
    show_value(found, as_json, _lines)


@app.command()
def cluster(as_json: AsJson = False) -> None:
    """Show the hosts of the cluster and their free capacity."""
    with connect() as client:
        found = client.cluster()
    show_value(found, as_json, _nodes)


def _nodes(cluster: dict[str, Any]) -> RenderableType:
    return nodes_table(cluster["nodes"]) if cluster["reachable"] else "Ray is unreachable now."


def _lines(entries: list[dict[str, Any]]) -> str:
    return "\n".join(f"{one['name']:<24}{one['summary'].splitlines()[0]}" for one in entries)
