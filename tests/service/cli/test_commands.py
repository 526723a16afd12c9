"""Each operation of the API is a method of the client and a verb of the command line, and they do the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from syncnorm.service.cli import main as cli
from syncnorm.service.cli import terminal
from syncnorm.service.cli.commands import listing
from syncnorm.service.cli.tables import phase_times, where
from syncnorm.service.cli.terminal import Screen
from syncnorm.service.client.client import Client
from tests.helpers.service.api import SPEC, api
from tests.helpers.service.world import World
from tests.service.cli.test_progress import client_of

FOR_PROGRAMS = {"/healthz", "/readyz", "/metrics"}
OPERATIONS = {
    "POST /v1/jobs": ("submit", "submit"),
    "GET /v1/jobs": ("jobs", "ls"),
    "GET /v1/jobs/{job_id}": ("job", "show"),
    "PATCH /v1/jobs/{job_id}": ("change", "change"),
    "DELETE /v1/jobs/{job_id}": ("delete", "rm"),
    "POST /v1/jobs/{job_id}/cancel": ("cancel", "cancel"),
    "POST /v1/jobs/{job_id}/pause": ("pause", "pause"),
    "POST /v1/jobs/{job_id}/resume": ("resume", "resume"),
    "POST /v1/jobs/{job_id}/retry": ("retry", "retry"),
    **{f"POST /v1/jobs:{verb}": ("ask_many", verb) for verb in ("cancel", "pause", "resume", "retry")},
    "GET /v1/audit": ("audit", "audit"),
    "GET /v1/jobs/{job_id}/attempts": ("attempts", "attempts"),
    "GET /v1/jobs/{job_id}/explain": ("explain", "explain"),
    "GET /v1/jobs/{job_id}/checkpoints": ("checkpoints", "checkpoints"),
    "GET /v1/jobs/{job_id}/files": ("files", "files"),
    "GET /v1/jobs/{job_id}/files/{path}": ("download", "get"),
    "GET /v1/jobs/{job_id}/statistics": ("statistics", "statistics"),
    "GET /v1/jobs/{job_id}/stacks": ("stacks", "stacks"),
    "POST /v1/jobs/{job_id}/profile": ("profile", "profile"),
    "GET /v1/jobs/{job_id}/profile": ("last_profile", "profile"),
    "POST /v1/jobs/{job_id}/exports": ("export", "export"),
    "GET /v1/jobs/{job_id}/exports": ("exports", "exports"),
    "GET /v1/jobs/{job_id}/exports/{name}": ("one_export", "exports"),
    "GET /v1/jobs/{job_id}/events": ("events", "events"),
    "GET /v1/jobs/{job_id}/logs": ("logs", "logs"),
    "POST /v1/studies": ("submit_study", "study submit"),
    "GET /v1/studies": ("studies", "study ls"),
    "GET /v1/studies/{study_id}": ("study", "study show"),
    "GET /v1/studies/{study_id}/report": ("study_report", "study report"),
    "POST /v1/studies/{study_id}/seeds": ("add_seeds", "study add-seeds"),
    "POST /v1/studies/{study_id}/cancel": ("ask_study", "study cancel"),
    "POST /v1/studies/{study_id}/pause": ("ask_study", "study pause"),
    "POST /v1/studies/{study_id}/resume": ("ask_study", "study resume"),
    "POST /v1/studies/{study_id}/retry": ("ask_study", "study retry"),
    "GET /v1/tokens": ("tokens", "token ls"),
    "POST /v1/tokens": ("create_token", "token create"),
    "DELETE /v1/tokens/{token_id}": ("revoke_token", "token revoke"),
    "PUT /v1/packages/{sha256}": ("put_package", "package put"),
    "GET /v1/secrets": ("secrets", "secret ls"),
    "PUT /v1/secrets/{name}": ("put_secret", "secret put"),
    "DELETE /v1/secrets/{name}": ("delete_secret", "secret rm"),
    "GET /v1/norms": ("norms", "norms"),
    "GET /v1/models": ("models", "models"),
    "GET /v1/datasets": ("datasets", "datasets"),
    "GET /v1/cluster": ("cluster", "cluster"),
}

Sn = Callable[..., Result]


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Sn, World]]:
    """(the command line, the world it speaks to)."""
    with api(tmp_path) as (http, world):
        monkeypatch.setattr(terminal, "Client", lambda: client_of(http))
        yield lambda *words: CliRunner().invoke(cli.app, list(words)), world


def test_every_operation_is_a_method_and_a_verb(tmp_path: Path) -> None:
    with api(tmp_path) as (http, _):
        paths = http.get("/openapi.json").json()["paths"]

    found = {f"{method.upper()} {path}" for path, item in paths.items() for method in item if path not in FOR_PROGRAMS}
    assert found == set(OPERATIONS)
    for method, verb in OPERATIONS.values():
        assert callable(getattr(Client, method))
        command: Any = typer.main.get_command(cli.app)
        for name in verb.split():
            command = command.commands[name]


@pytest.mark.parametrize("verb", ["show", "attempts", "events", "logs", "checkpoints", "statistics", "exports"])
def test_record_is_shown_for_people_and_for_programs(served: tuple[Sn, World], verb: str) -> None:
    sn, world = served
    job = world.succeed()

    shown, read = sn(verb, job.id), sn(verb, job.id, "--json")

    assert (shown.exit_code, read.exit_code) == (0, 0), shown.output + read.output
    for text in read.stdout.splitlines() if verb in ("events", "logs") else [read.stdout]:
        json.loads(text)


def test_events_tell_the_states_in_order(served: tuple[Sn, World]) -> None:
    sn, world = served
    job = world.succeed()

    kinds = [json.loads(line)["kind"] for line in sn("events", job.id, "--json").stdout.splitlines()]

    assert kinds[0] == "queued"
    assert kinds[-1] == "succeeded"


def test_change_sets_priority_and_labels(served: tuple[Sn, World]) -> None:
    sn, world = served
    job = world.submit()

    changed = sn("change", job.id, "--priority", "7", "--label", "team:vision", "--label", "try:2")
    cleared = sn("change", job.id, "--no-labels", "--json")

    assert changed.exit_code == 0, changed.output
    assert "priority 7, labels team:vision try:2" in changed.stdout
    assert json.loads(cleared.stdout)["labels"] == {}
    assert json.loads(cleared.stdout)["priority"] == 7


def test_change_sets_and_takes_away_limits(served: tuple[Sn, World]) -> None:
    sn, world = served
    job = world.submit(limits={"deadline_s": 60.0, "grace_s": 20.0})

    changed = sn("change", job.id, "--deadline-s", "1e4", "--max-failures", "0", "--collective-timeout-s", "90")
    longer = world.job(job.id).spec.document["limits"]
    endless = sn("change", job.id, "--no-deadline", "--grace-s", "5")

    assert changed.exit_code == endless.exit_code == 0, changed.output + endless.output
    assert "deadline_s 10000.0, max_failures 0, collective_timeout_s 90.0" in changed.stdout
    assert longer == {"deadline_s": 1e4, "max_failures": 0, "grace_s": 20.0, "collective_timeout_s": 90.0}
    assert "grace_s 5.0, deadline_s none" in endless.stdout
    assert world.job(job.id).spec.document["limits"] == longer | {"deadline_s": None, "grace_s": 5.0}


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--deadline-s", "0"),
        ("--deadline-s", "1e15"),
        ("--deadline-s", "nan"),
        ("--deadline-s", "inf"),
        ("--max-failures", "-1"),
        ("--max-failures", "9999999999999999999"),
        ("--grace-s", "-inf"),
        ("--collective-timeout-s", "3601"),
    ],
)
def test_limit_out_of_its_bounds_is_refused_by_name(served: tuple[Sn, World], option: str, value: str) -> None:
    sn, world = served
    job = world.submit()

    refused = sn("change", job.id, option, value)

    assert refused.exit_code == 2, refused.output
    assert option.lstrip("-").replace("-", "_") in refused.output
    assert world.job(job.id) == job


def test_limits_of_a_job_under_way_stay(served: tuple[Sn, World]) -> None:
    sn, world = served
    job = world.submit()
    world.step()

    refused = sn("change", job.id, "--deadline-s", "60")

    assert refused.exit_code == 2
    assert "its limits can change while it is one of: queued, paused, failed" in refused.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--priority, --label, --no-labels, or a limit such as --deadline-s"),
        (["--label", "team"], "must be key:value, got team"),
        (["--label", "a:b", "--no-labels"], "exclude each other"),
        (["--deadline-s", "60", "--no-deadline"], "--deadline-s and --no-deadline exclude each other"),
    ],
)
def test_change_that_says_nothing_clear_is_wrong_use(served: tuple[Sn, World], words: list[str], said: str) -> None:
    sn, world = served

    refused = sn("change", world.submit().id, *words)

    assert refused.exit_code == 2
    assert said in refused.output


def test_finished_job_is_deleted_and_another_is_not(served: tuple[Sn, World]) -> None:
    sn, world = served
    done, waiting = world.succeed(), world.submit()

    assert sn("rm", done.id).exit_code == 0
    assert sn("rm", waiting.id).exit_code == 2
    assert sn("show", done.id).exit_code == 2


def test_ls_asks_for_what_its_options_say(served: tuple[Sn, World]) -> None:
    sn, world = served
    job = world.submit()

    for words in (["--norm", "box_cox"], ["--owner", "nobody"], ["--name", "other"], ["--state", "failed"]):
        assert json.loads(sn("ls", *words, "--json").stdout) == []
    assert [one["id"] for one in json.loads(sn("ls", "--name", SPEC["name"], "--json").stdout)] == [job.id]


def test_ls_says_that_there_are_more_than_it_lists(served: tuple[Sn, World]) -> None:
    sn, world = served
    jobs = [world.submit().id for _ in range(3)]

    some, all_, in_json = sn("ls", "--limit", "2"), sn("ls", "--limit", "3"), sn("ls", "--limit", "2", "--json")

    assert len(some.stdout.splitlines()) == 1 + 2
    assert "The newest 2 of more." in some.stderr
    assert (all_.stderr, in_json.stderr) == ("", "")
    assert [one["id"] for one in json.loads(in_json.stdout)] == jobs[:0:-1]


def test_wide_list_has_whole_ids_and_every_column(served: tuple[Sn, World], monkeypatch: pytest.MonkeyPatch) -> None:
    sn, world = served
    monkeypatch.setattr(listing, "out", Screen(width=80))  # a terminal
    job = world.submit(project="somewhere")

    narrow, wide = sn("ls").stdout, sn("ls", "--wide").stdout

    assert (job.id in narrow, "somewhere" in narrow) == (False, False)
    assert (job.id in wide, "somewhere" in wide, len(wide.splitlines())) == (True, True, 2)


@pytest.mark.parametrize("words", [("--wide", "--watch"), ("--wide", "--json"), ("--watch", "--json")])
def test_options_of_ls_that_exclude_each_other_are_wrong_use(words: tuple[str, str]) -> None:
    refused = CliRunner().invoke(cli.app, ["ls", *words])

    assert refused.exit_code == 2
    assert all(word in refused.output for word in words)


def test_catalog_and_cluster_are_shown(served: tuple[Sn, World]) -> None:
    sn, _ = served

    assert "resnet " in sn("models").stdout
    assert "digit_scenes " in sn("datasets").stdout
    assert "group " in sn("norms").stdout
    assert "CPUs free" in sn("cluster").stdout


def test_job_that_waits_says_why(served: tuple[Sn, World]) -> None:
    sn, world = served
    world.submit(resources={"workers": 3}, labels={"works": "99"})
    world.step()
    job = world.submit()
    world.step()

    assert "Why it waits: There is no capacity" in " ".join(sn("show", job.id).stdout.split())


def test_list_that_a_filter_empties_says_so(served: tuple[Sn, World]) -> None:
    sn, world = served
    assert "No jobs." in sn("ls").stdout
    world.submit()

    assert "No jobs match." in sn("ls", "--state", "failed").stdout


def test_explain_names_the_jobs_in_the_way(served: tuple[Sn, World]) -> None:
    sn, world = served
    first = world.submit(name="long one", resources={"workers": 3}, labels={"works": "99"})
    world.step()
    second = world.submit()
    world.step()

    assert f"in the way: {first.id} (long one)" in sn("explain", second.id).stdout


def test_phases_are_shown_with_what_they_took() -> None:
    attempt = {
        "created_at": "2026-01-01T00:00:00Z",
        "ended_at": "2026-01-01T00:02:31Z",
        "phases": {
            "preparing": "2026-01-01T00:00:06Z",
            "training": "2026-01-01T00:00:21Z",
            "done": "2026-01-01T00:02:30Z",
        },
    }

    assert list(phase_times(attempt)) == ["submit 0:06", "preparing 0:15", "training 2:09"]
    assert list(phase_times(attempt | {"ended_at": None, "phases": {}})) == []


def test_ranks_are_shown_by_host() -> None:
    ranks = [{"rank": rank, "host": f"host-{rank // 2}", "gpu": "H200" if rank < 2 else None} for rank in range(3)]

    assert list(where(ranks)) == ["host-0: 0, 1 (H200)", "host-1: 2"]


STUDY = {
    "name": "kinds",
    "base": {"model": {"name": "cnn"}, "data": {"name": "digits", "batch_size": 2}, "resources": {"workers": 1}},
    "grid": {"norm.kind": ["batch", "group"]},
    "seeds": [0, 1, 2],
}


def test_plan_of_a_study_shows_each_combination_and_submits_nothing(served: tuple[Sn, World], tmp_path: Path) -> None:
    sn, _ = served
    path = tmp_path / "study.yaml"
    path.write_text(json.dumps(STUDY))

    shown = sn("study", "plan", str(path))
    read = json.loads(sn("study", "plan", str(path), "--json").stdout)
    refused = sn("plan", str(path))

    assert shown.exit_code == 0, shown.output
    assert "6 jobs: 2 combinations with 3 seeds each" in shown.stdout
    assert [one["plan"]["norm"]["kind"] for one in read["combinations"]] == ["batch", "group"]
    assert json.loads(sn("study", "ls", "--json").stdout) == []
    assert refused.exit_code == 2
    assert "is a study, since it has base or grid. Use `syncnorm study plan`" in " ".join(refused.stderr.split())


def test_seeds_are_added_to_a_study(served: tuple[Sn, World], tmp_path: Path) -> None:
    sn, _ = served
    path = tmp_path / "study.yaml"
    path.write_text(json.dumps(STUDY))
    sn("study", "submit", str(path))

    added, again, wrong = (sn("study", "add-seeds", "last", *seeds) for seeds in (("7", "8"), ("7",), ("-1",)))

    assert added.stdout.strip().endswith("10 queued, 4 jobs added")
    assert again.stdout.strip().endswith("10 queued, no job added, since it has these seeds")
    assert wrong.exit_code == 2


def test_verb_that_changes_no_job_of_a_study_says_so(served: tuple[Sn, World], tmp_path: Path) -> None:
    sn, _ = served
    path = tmp_path / "study.yaml"
    path.write_text(json.dumps(STUDY))
    sn("study", "submit", str(path))

    resumed, cancelled = sn("study", "resume", "last"), sn("study", "cancel", "last")

    assert "no job to resume, since none is paused. `retry` continues failed and cancelled ones" in resumed.stdout
    assert "cancel requested" in cancelled.stdout
