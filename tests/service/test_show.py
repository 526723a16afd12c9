"""What the command line shows: the live table, completion of job ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from service import cli
from service.client import Client
from service.commands import arguments, exports, terminal
from service.commands.show import watch
from tests.service.api import SPEC, api


def job(name: str, state: str, percent: float | None = None, eta_s: float | None = None) -> dict[str, Any]:
    progress = {"percent": percent, "eta_s": eta_s}
    spec = {"resources": {"workers": 2}}
    about = {"id": f"job_{name}", "name": name, "project": "demo", "created_at": "2026-01-01T00:00:00"}
    return {
        **about,
        "state": state,
        "norm": "batch",
        "progress": progress,
        "spec": spec,
        "world_size": 1 if percent else None,
    }


def test_live_table_goes_on_until_every_job_is_finished() -> None:
    looks = iter(
        [
            [job("a", "running", 40.0, 75.0), job("b", "queued")],
            [job("a", "succeeded", 100.0), job("b", "running", 5.0)],
            [job("a", "succeeded", 100.0), job("b", "failed")],
        ]
    )
    console, rests = Console(record=True, width=140, force_terminal=True), []

    last = watch(lambda: next(looks), console, rests.append)

    text = console.export_text()
    assert [one["state"] for one in last] == ["succeeded", "failed"]
    assert len(rests) == 2
    assert "40 %  1:15 left" in text
    assert "1 of 2" in text  # an elastic job
    assert "failed" in text


READING = ["ls", "show", "watch", "logs", "events", "attempts", "checkpoints", "statistics", "exports", "explain"]
READING += ["plan", "norms", "models", "datasets", "cluster", "doctor", "version"]
READING += ["study ls", "study show", "study report", "token ls", "secret ls"]


@pytest.mark.parametrize("verb", READING)
def test_every_reading_verb_speaks_json(verb: str) -> None:
    command = typer.main.get_command(cli.app)
    for name in verb.split():
        command = command.commands[name]

    assert "--json" in [option for parameter in command.params for option in parameter.opts]


def test_plan_is_shown_for_people_and_as_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(json.dumps(SPEC | {"norm": {"kind": "batch"}, "data": {"name": "digits", "batch_size": 1}}))
    with api(tmp_path) as (http, _):
        monkeypatch.setattr(terminal, "Client", lambda: client_of(http))

        shown = CliRunner().invoke(cli.app, ["plan", str(path), "--set", "resources.workers=2"])
        read = CliRunner().invoke(cli.app, ["plan", str(path), "--set", "resources.workers=2", "--json"])

    assert (shown.exit_code, read.exit_code) == (0, 0), shown.output
    assert "workers" in shown.stdout
    assert "2 of 1 CPU each, fit now" in shown.stdout
    assert "1 a worker, 1 behind a statistic, 2 a batch of all" in shown.stdout
    assert "sync_batch, group or a larger batch" in shown.stdout
    assert json.loads(read.stdout)["batch"] == {"per_worker": 1, "norm_group": 1, "global": 2}


def test_watched_job_is_printed_as_json_when_it_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with api(tmp_path) as (http, world):
        done = world.succeed()
        monkeypatch.setattr(terminal, "Client", lambda: client_of(http))

        watched = CliRunner().invoke(cli.app, ["watch", done.id, done.id, "--json"])

    assert watched.exit_code == 0, watched.output
    assert [job["state"] for job in json.loads(watched.stdout)] == ["succeeded", "succeeded"]


def test_export_command_follows_to_the_certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with api(tmp_path) as (http, world):
        job = world.succeed(labels={"exports": "succeeded", "export_works": "2"})
        monkeypatch.setattr(terminal, "Client", lambda: client_of(http))
        monkeypatch.setattr(exports.wait, "__defaults__", (lambda _s: world.step(),))

        done = CliRunner().invoke(cli.app, ["export", job.id, "--format", "onnx", "--no-fold", "--follow"])
        asked = CliRunner().invoke(cli.app, ["export", job.id, "--register-as", "mine", "--json"])
        refused = CliRunner().invoke(cli.app, ["export", world.submit().id])

    assert (done.exit_code, asked.exit_code, refused.exit_code) == (0, 0, 2), done.output
    assert "export 2 succeeded" in done.output
    assert "Model        models:/m-1" in done.output
    section = world.store.exports(job.id)[0].section
    assert section == {"formats": ["onnx"], "fold": False, "register_as": None}
    assert json.loads(asked.stdout)["export"] == {"formats": ["pt2", "onnx"], "fold": True, "register_as": "mine"}


def test_export_that_fails_is_exit_code_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with api(tmp_path) as (http, world):
        job = world.succeed(labels={"exports": "user_error"})
        monkeypatch.setattr(terminal, "Client", lambda: client_of(http))
        monkeypatch.setattr(exports.wait, "__defaults__", (lambda _s: world.step(),))

        done = CliRunner().invoke(cli.app, ["export", job.id, "--follow"])

    assert done.exit_code == 1
    assert "export 2 failed It raised. Your code, model or data raised" in done.output


def client_of(http: Any, timeout_s: float = 30) -> Client:
    """A client of the application in this process."""
    made = Client("http://testserver", timeout_s=timeout_s)
    made.connection.http.close()
    made.connection.http = http
    http.close = lambda: None
    return made


def test_shell_completes_the_ids_of_the_newest_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with api(tmp_path) as (http, _):
        ids = [http.post("/v1/jobs", json=SPEC | {"name": f"n{number}"}).json()["id"] for number in range(2)]

        monkeypatch.setattr(arguments, "Client", lambda timeout_s: client_of(http, timeout_s))
        found, none = arguments.complete_job(ids[0]), arguments.complete_job("x")

    assert found == [(ids[0], "n0 queued")]
    assert none == []


def test_completion_without_a_service_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNCNORM_URL", "http://127.0.0.1:9")

    assert arguments.complete_job("") == []
