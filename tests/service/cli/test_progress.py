"""What the command line shows: lists, the live table, summaries, completion, and nothing that a terminal obeys."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from syncnorm.service.cli import arguments, terminal
from syncnorm.service.cli import main as cli
from syncnorm.service.cli.commands import exports
from syncnorm.service.cli.plan_table import plan_table
from syncnorm.service.cli.progress import follow, summary, watch
from syncnorm.service.cli.selection import by_short_id
from syncnorm.service.cli.tables import jobs_table
from syncnorm.service.client.client import TERMINAL, Client
from syncnorm.service.client.connection import Connection
from syncnorm.service.jobs.job import new_job_id
from syncnorm.trainer.contract.plan import Inspection, plan
from syncnorm.trainer.contract.spec import ExportSpec
from syncnorm.trainer.contract.spec_reader import read_spec
from tests.helpers.service.api import SPEC, api


def job(name: str, state: str, percent: float | None = None, eta_s: float | None = None, **more: Any) -> dict[str, Any]:
    """A job as the API shows it."""
    return {
        "id": new_job_id(),
        "name": name,
        "project": "demo",
        "owner": "ada",
        "priority": 3,
        "labels": {},
        "created_at": "2026-01-01T00:00:00Z",
        "started_at": "2026-01-01T00:01:00Z" if percent else None,
        "finished_at": "2026-01-01T00:02:05Z" if state in TERMINAL else None,
        "state": state,
        "reason": None,
        "message": "",
        "norm": "batch",
        "progress": {"percent": percent, "eta_s": eta_s, "metrics": {}, "epoch": 1, "epochs": 2, "step": 3, "steps": 6},
        "spec": {"resources": {"workers": 2}},
        "world_size": 1 if percent else None,
        "mlflow": {"run_id": None, "url": None},
        "model": None,
        **more,
    }


GUARANTEES = {
    key: {"holds": "partly", "why": "a sampler of yours draws"}
    for key in ("equals_one_device", "resumes_exactly", "exported")
}


def test_what_holds_is_in_the_summary_and_in_the_plan() -> None:
    console = Console(width=120, record=True)
    document = plan(read_spec(SPEC), None, Inspection(conversion=[], findings=[], guarantees=GUARANTEES)).as_json()

    console.print(summary(job("a", "running", 40.0, guarantees=GUARANTEES)))
    console.print(plan_table(document))

    text = console.export_text()
    for label in ("one device", "resumes", "exported"):
        assert len(re.findall(rf"{label} +partly: a sampler of yours draws", text)) == 2


def test_plan_without_a_built_model_says_that_the_layers_are_unknown() -> None:
    console = Console(width=200, record=True)

    console.print(plan_table(plan(read_spec(SPEC), None, None).as_json()))
    console.print(plan_table(plan(read_spec(SPEC), None, Inspection(conversion=[], findings=[])).as_json()))

    assert console.export_text().count("did not build the model in time") == 1


def test_plan_of_a_loader_without_a_batch_size_names_the_field_instead_of_none() -> None:
    own = {**SPEC, "data": {"class_path": "mine.Data"}, "code": {"package": f"sha256:{'0' * 64}"}}
    made = plan(read_spec(own), None, None).as_json()
    text = {}
    for inspected in (True, False):
        console = Console(width=200, record=True)
        console.print(plan_table(made | {"inspected": inspected}))
        text[inspected] = console.export_text()

    assert "None" not in text[True] + text[False]
    assert "Set data.batch_size" in text[True]
    assert "Set data.batch_size" not in text[False]  # the loader may have told it, had the model been built


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (
            {"share": 0.0124, "object_share": None, "samples": 4, "reference": "whole"},
            "another class than by whole samples at 1.24% of the positions of 4 samples",
        ),
        (
            {"share": 0.5, "samples": 1, "reference": [8, 8]},
            "than by smaller windows at 50.00% of the positions of 1 s",
        ),
        (
            {"share": 0.25, "samples": 2, "reference": "whole", "validated": "joint", "statistics_share": 0.0},
            "validated jointly; by windows, as an exported file is run, another class than by whole samples",
        ),
        ({"not_measured": "the first worker has no validation samples"}, "the first worker has no validation samples"),
    ],
)
def test_what_windows_change_is_in_the_summary(found: dict[str, Any], text: str) -> None:
    console = Console(width=120, record=True)
    certificate = {"passed": True, "checks": [], "windows": found}

    console.print(summary(job("a", "succeeded", model={"uri": "m", "registered": None, "certificate": certificate})))
    console.print(
        summary(job("a", "succeeded", model={"uri": "m", "registered": None, "certificate": {"passed": True}}))
    )

    lines = [line for line in console.export_text().splitlines() if line.startswith("Windows")]
    assert len(lines) == 1
    assert text in lines[0]


def test_frozen_parameters_and_groups_are_in_the_plan() -> None:
    console = Console(width=120, record=True)
    parameters = {
        "total": 1300,
        "trained": 1000,
        "frozen": [{"match": "conv1", "parameters": 300, "unfreeze_at": "1 epoch"}],
        "groups": [
            {"match": "layer1.*", "parameters": 200, "lr": 0.01, "weight_decay": 0.0},
            {"match": None, "parameters": 1100, "lr": 0.1, "weight_decay": 5e-4},
        ],
    }
    inspection = Inspection.model_validate({"conversion": [], "findings": [], "parameters": parameters})

    console.print(plan_table(plan(read_spec(SPEC), None, inspection).as_json()))

    text = console.export_text()
    assert "1,000 of 1,300 parameters from the start" in text
    assert "300 parameters of conv1, trained after 1 epoch" in text
    assert "layer1.*: 200 parameters, lr 0.01, weight decay 0" in text
    assert "the rest: 1,100 parameters, lr 0.1, weight decay 0.0005" in text


def test_what_is_loaded_from_trained_weights_is_in_the_plan() -> None:
    console = Console(width=300, record=True)
    weights = {
        "origin": {"source": "job job_1 step 7", "digest": "sha256:abc"},
        "loaded": [{"name": f"conv{number}.weight", "shape": [4, 3]} for number in range(9)],
        "dropped": [{"name": "fc.weight", "shape": [2, 4]}],
        "left": [],
    }
    inspection = Inspection.model_validate({"conversion": [], "findings": [], "init_from": weights})

    console.print(plan_table(plan(read_spec(SPEC), None, inspection).as_json()))

    text = console.export_text()
    assert "job job_1 step 7, sha256:abc" in text
    assert "loaded 9 tensors: conv0.weight (4, 3), " in text
    assert "conv5.weight (4, 3) and 3 more" in text
    assert "dropped 1 tensor: fc.weight (2, 4)" in text
    assert "left 0 tensors" in text


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


@pytest.mark.parametrize(
    ("taken", "text"), [({"which": "best", "step": 47}, "best, of step 47."), ({"which": "last", "step": 188}, None)]
)
def test_checkpoint_of_the_model_is_in_the_summary_unless_it_is_the_last(
    taken: dict[str, Any], text: str | None
) -> None:
    console = Console(width=120, record=True)
    certificate = {"passed": True, "checks": [], "checkpoint": taken}

    console.print(summary(job("a", "succeeded", model={"uri": "m", "registered": None, "certificate": certificate})))

    lines = [line for line in console.export_text().splitlines() if line.startswith("Checkpoint")]
    assert [text in line for line in lines] == ([True] if text else [])


READING = ["ls", "show", "watch", "logs", "events", "attempts", "checkpoints", "statistics", "exports", "explain"]
READING += ["files", "get"]
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
    assert "1 per worker, 1 per norm group, 2 in the global batch" in shown.stdout
    assert "sync_batch, group or a larger batch" in shown.stdout
    assert json.loads(read.stdout)["batch"] == {"per_worker": 1, "norm_group": 1, "global": 2}


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_plan_with_an_error_is_exit_code_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(json.dumps(SPEC | {"resources": {"workers": 500}}))
    with api(tmp_path) as (http, _):
        monkeypatch.setattr(terminal, "Client", lambda: client_of(http))

        shown = CliRunner().invoke(cli.app, ["plan", str(path), *options])

    assert shown.exit_code == 2
    assert "the whole cluster has capacity for" in shown.stdout


def test_piped_table_has_no_spaces_at_the_end_of_its_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(json.dumps(SPEC))
    with api(tmp_path) as (http, _):
        monkeypatch.setattr(terminal, "Client", lambda: client_of(http))

        lines = CliRunner().invoke(cli.app, ["plan", str(path)]).stdout.splitlines()

    assert len(lines) > 3
    assert lines == [line.rstrip() for line in lines]


def test_watched_job_is_printed_as_json_when_it_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with api(tmp_path) as (http, world):
        one, two = world.succeed(), world.succeed()
        monkeypatch.setattr(terminal, "Client", lambda: client_of(http))

        watched = CliRunner().invoke(cli.app, ["watch", one.id, two.id, "--json"])

    assert watched.exit_code == 0, watched.output
    assert [job["state"] for job in json.loads(watched.stdout)] == ["succeeded", "succeeded"]


def test_export_command_follows_to_the_certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with api(tmp_path) as (http, world):
        best = {"train": {"keep_best": {"monitor": "val/loss"}}}
        job = world.succeed(labels={"exports": "succeeded", "export_works": "2"}, **best)
        monkeypatch.setattr(terminal, "Client", lambda: client_of(http))
        monkeypatch.setattr(exports.wait, "__defaults__", (lambda _s: world.step(),))

        done = CliRunner().invoke(
            cli.app, ["export", job.id, "--format", "onnx", "--no-fold", "--follow", "--checkpoint", "best"]
        )
        asked = CliRunner().invoke(cli.app, ["export", job.id, "--register-as", "mine", "--json"])
        refused = CliRunner().invoke(cli.app, ["export", world.submit().id])

    assert (done.exit_code, asked.exit_code, refused.exit_code) == (0, 0, 2), done.output
    assert "export 2 succeeded" in done.output
    assert "Model        models:/m-1" in done.output
    section = world.store.exports.of_job(job.id)[0].section
    assert ExportSpec.model_validate(section) == ExportSpec(formats=["onnx"], fold=False, checkpoint="best")
    wanted = {"formats": ["pt2", "onnx"], "fold": True, "register_as": "mine", "checkpoint": "last"}
    assert wanted.items() <= json.loads(asked.stdout)["export"].items()


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


def test_shell_completes_ids_and_names_of_the_newest_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with api(tmp_path) as (http, _):
        names = ("first", "twice", "twice")
        ids = [http.post("/v1/jobs", json=SPEC | {"name": name}).json()["id"] for name in names]

        monkeypatch.setattr(arguments, "Client", lambda timeout_s: client_of(http, timeout_s))

        assert arguments.complete_job(ids[0]) == [(ids[0], "first queued")]
        assert arguments.complete_job("fi") == [("first", "queued")]
        assert arguments.complete_job("tw") == []
        assert [word for word, _ in arguments.complete_job("")] == ids[::-1]
        assert arguments.complete_job("x") == []


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://127.0.0.1:x", "ftp://nowhere"])
def test_completion_without_a_service_is_silent(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SYNCNORM_URL", url)

    assert arguments.complete_job("") == []
    assert capsys.readouterr() == ("", "")


def shown(renderable: Any, width: int = 80) -> str:
    console = terminal.Screen(width=width)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


@pytest.mark.parametrize("width", [80, 95, 110, 125, 135, 160, 165, 195, 200])
def test_list_fits_the_terminal_and_shows_state_name_owner_progress_and_age(width: int) -> None:
    jobs = [job("a-rather-long-name-of-a-job-that-somebody-gave", "finalizing", 40.0, 4575.0), job("b", "queued")]
    jobs[1] |= {"id": "job_01m7" + "0" * 22, "owner": "an-owner-whose-name-takes-the-whole-width-of-the-terminal"}

    lines = shown(jobs_table(jobs, width), width).splitlines()

    assert len(lines) == 3
    assert max(map(len, lines)) <= width
    assert all(word in lines[1] for word in ("a-rather-l", "finalizing", "ada", "40 %  1:16:15 left", " d"))
    assert jobs[0]["id"][:14] in lines[1]
    assert "an-o" in lines[2]


def test_short_ids_name_one_job_each_and_so_do_those_of_one_millisecond() -> None:
    same_moment = [f"job_01m7yng3ka{end}" for end in ("e23np1brvwtk9g1z", "e24np1brvwtk9g1z", "zzzzzzzzzzzzzzzz")]
    ids = [*same_moment, "job_01m7zzzzzzzzzzzzzzzzzzzzzz"]

    short = by_short_id([{"id": one} for one in ids])

    assert [short[one] for one in ids] == [
        "job_01m7yng3kae23",
        "job_01m7yng3kae24",
        "job_01m7yng3kaz",
        "job_01m7zzzzzz",
    ]


def test_wide_terminal_and_pipe_show_whole_ids() -> None:
    one = job("n", "running")

    assert one["id"] in shown(jobs_table([one], 1000), 1000)


def test_message_with_markup_and_emoji_is_shown_as_it_is() -> None:
    failed = job("[bold]n[/]", "failed", message="expected [/x], got [red] at query:label:")

    text = shown(summary(failed), 200)

    assert "[bold]n[/] job_" in text
    assert "expected [/x], got [red] at query:label:" in text


@pytest.mark.parametrize("value", ["NaN", "Infinity", None])
def test_metric_that_is_not_finite_is_shown(value: Any) -> None:
    one = job("n", "running", 10.0)
    one["progress"]["metrics"] = {"train/loss": value, "val/dice": value}

    assert str(value or "none") in shown(summary(one))


HOSTILE = "\x1b[2J\x1b]0;owned\x07 \u202etxt.exe \x9b31m"


def test_terminal_is_shown_control_characters_and_not_given_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal.out, "_force_terminal", True)

    fitting = terminal.fit({"name": HOSTILE, "labels": {HOSTILE: [HOSTILE]}, "step": 3, "text": "a\tb\nc é"})

    assert fitting["name"] == r"\x1b[2J\x1b]0;owned\x07 \u202etxt.exe \x9b31m"
    assert "\x1b" not in str(fitting)
    assert fitting["labels"] == {fitting["name"]: [fitting["name"]]}
    assert (fitting["step"], fitting["text"]) == (3, "a\tb\nc é")


def test_pipe_is_given_what_the_job_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal.out, "_force_terminal", False)

    assert terminal.fit(HOSTILE) == HOSTILE


@pytest.mark.parametrize(("words", "raw"), [([], False), (["--raw"], True)])
def test_log_lines_are_shown_and_not_obeyed_unless_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], raw: bool
) -> None:
    with api(tmp_path) as (http, world):
        one = world.succeed()
        monkeypatch.setattr(terminal, "Client", lambda: client_of(http))
        monkeypatch.setattr(terminal.out, "_force_terminal", True)
        line = {"rank": 0, "level": "INFO", "at": "2026-01-01T00:00:00Z", "text": HOSTILE}
        monkeypatch.setattr(Client, "logs", lambda *_, **__: iter([line]))

        printed = CliRunner().invoke(cli.app, ["logs", one.id, *words]).stdout

    assert ("\x1b" in printed) is raw


PHASES = "preparing|starting_workers|training|finalizing|done"
STRUCTURE = re.compile(f"id|.*_id|state|kind|at|.*_at|outcome|reason|severity|.*_start|metrics|{PHASES}")
READING = ["ls", "show last", "explain last", "attempts last", "events last", "checkpoints last", "files last", "audit"]
READING += ["exports last", "statistics last", "cluster", "norms", "models", "datasets", "token ls", "secret ls"]
READING += ["study ls", "study show STUDY"]


def hostile(value: Any, key: str = "id") -> Any:
    """`value` with every text in it that is free, as far as its name tells."""
    if isinstance(value, dict):
        return {name: hostile(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [hostile(item, key) for item in value]
    return HOSTILE if isinstance(value, str) and not STRUCTURE.fullmatch(key) else value


@pytest.mark.parametrize("words", READING)
def test_no_answer_of_the_service_commands_the_terminal(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with api(tmp_path) as (http, world):
        job = world.succeed(labels={"team": "a"}).id
        http.put("/v1/secrets/ONE", json={"value": "v"})
        http.post("/v1/tokens", json={"owner": "ann"})
        base = {"model": {"name": "mlp"}, "data": {"name": "digits", "batch_size": 8}}
        study = http.post("/v1/studies", json={"name": "s", "base": base, "grid": {"optimizer.lr": [0.1]}}).json()["id"]
        monkeypatch.setattr(terminal, "Client", lambda: client_of(http))
        monkeypatch.setattr(terminal.out, "_force_terminal", True)
        ask = Connection.json
        monkeypatch.setattr(Connection, "json", lambda *of, **options: hostile(ask(*of, **options)))

        shown = CliRunner().invoke(cli.app, words.replace("STUDY", study).replace("last", job).split())

    assert shown.exit_code == 0, shown.output
    assert shown.stdout
    assert not re.search("\x1b\\[2J|\x1b\\]|\x9b|\u202e", shown.output)


def test_events_go_to_a_terminal_on_standard_error_as_shown_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal.out, "_force_terminal", False)
    console = Console(record=True, width=200, force_terminal=True)
    event = {"kind": "non_finite", "message": HOSTILE, "data": {}}

    class RecordingReporter:
        connection = type("", (), {})()

        def follow_events(self, _job_id: str) -> list[Any]:
            return [event]

        def persist(self, look: Any) -> Any:
            return look()

        def job(self, _job_id: str) -> dict[str, Any]:
            return job("n", "succeeded", 100.0)

    follow(RecordingReporter(), "job_1", console)  # type: ignore[arg-type]

    assert r"\x1b[2J" in console.export_text()
