"""Which jobs a command is about, and what may be asked of one or many of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from syncnorm.service.cli import main as cli
from syncnorm.service.cli import terminal
from syncnorm.service.cli.commands import job_verbs as verbs
from syncnorm.service.cli.commands.job_verbs import VERBS
from syncnorm.service.cli.selection import job_id
from syncnorm.service.client.client import UsageError
from syncnorm.service.client.connection import Connection
from syncnorm.service.jobs.actions import ALLOWED
from tests.helpers.service.api import api
from tests.helpers.service.world import World
from tests.service.cli.test_progress import client_of

Sn = Callable[..., Result]


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Sn, World]]:
    """(the command line, the world it speaks to)."""
    with api(tmp_path) as (http, world):
        monkeypatch.setattr(terminal, "Client", lambda: client_of(http))
        yield lambda *words, **options: CliRunner().invoke(cli.app, list(words), **options), world


def states(world: World, *ids: str) -> list[tuple[str, str | None]]:
    return [(str(world.job(one).state), world.job(one).stop) for one in ids]


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_states_of_a_verb_are_those_of_the_service(verb: verbs.Verb) -> None:
    name = "delete" if verb.name == "rm" else verb.name

    assert {state for state, allowed in ALLOWED.items() if name in allowed} == set(verb.states)


def test_job_is_named_by_id_beginning_name_and_last(served: tuple[Sn, World]) -> None:
    sn, world = served
    one, two = world.submit(name="first"), world.submit(name="sec/ond job")

    for wanted, job in ((one.id, one), (one.id[:-1], one), (one.id[4:-1], one), ("first", one), ("sec/ond job", two)):
        assert json.loads(sn("show", wanted, "--json").stdout)["id"] == job.id
    assert json.loads(sn("show", "last", "--json").stdout)["id"] == two.id


def test_name_and_beginning_that_several_jobs_have_are_refused_with_their_ids(served: tuple[Sn, World]) -> None:
    sn, world = served
    ids = [world.submit(name="twice").id for _ in range(7)]

    for wanted in ("twice", "job_", ids[0][:8]):
        refused = sn("cancel", wanted)

        assert refused.exit_code == 2
        assert f"'{wanted}' matches several jobs" in refused.stderr
        assert ids[-1] in refused.stderr
        assert refused.stderr.rstrip().endswith("…")
    assert {stop for _, stop in states(world, *ids)} == {None}


def test_name_that_no_job_has_is_refused(served: tuple[Sn, World]) -> None:
    sn, world = served
    assert "There is no last job" in sn("show", "last").stderr

    world.submit(name="first")

    for wanted in ("firs", "FIRST", "job_7", "nothing"):
        refused = sn("show", wanted)
        assert (refused.exit_code, "No job has an id that begins with" in refused.stderr) == (2, True)


def test_service_that_ignores_filters_makes_no_job_answer_for_another() -> None:
    class Ignorant:
        def jobs(self, **_: object) -> Iterator[dict[str, str]]:
            return iter([{"id": "job_01m7yng3kae23np1brvwtk9g1z", "name": "other", "state": "running"}])

    with pytest.raises(UsageError, match="No job has"):
        job_id(Ignorant(), "mine")  # type: ignore[arg-type]


def test_several_jobs_are_asked_and_one_refusal_keeps_none_from_it(served: tuple[Sn, World]) -> None:
    sn, world = served
    done, waiting, other = world.succeed(), world.submit(name="w"), world.submit()

    asked = sn("cancel", "w", done.id, "nothing", other.id, other.id)

    assert asked.exit_code == 2
    assert [line.split()[0] for line in asked.stdout.splitlines()] == [waiting.id, other.id]
    assert done.id in asked.stderr
    assert "No job has an id that begins with" in asked.stderr
    assert {stop for _, stop in states(world, waiting.id, other.id)} == {"cancel"}


@pytest.fixture
def asked_for(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Requests that change something: (address, how many jobs)."""
    seen: list[tuple[str, int]] = []
    ask = Connection.json

    def counted(self: Connection, method: str, path: str, **options: Any) -> Any:
        if method != "GET":
            seen.append((path, len(options["json"]["ids"])))
        return ask(self, method, path, **options)

    monkeypatch.setattr(Connection, "json", counted)
    return seen


@pytest.mark.parametrize("verb", ["cancel", "pause", "resume", "retry"])
def test_many_jobs_are_one_request(served: tuple[Sn, World], asked_for: list[tuple[str, int]], verb: str) -> None:
    sn, world = served
    ids = [world.submit().id for _ in range(3)]

    asked = sn(verb, *ids)
    sn(verb, "--state", "queued")

    assert asked_for == [(f"/v1/jobs:{verb}", 3), (f"/v1/jobs:{verb}", 3)]
    assert asked.exit_code == (0 if verb in ("cancel", "pause") else 2)


def test_more_jobs_than_fit_a_request_are_several(
    served: tuple[Sn, World], asked_for: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    sn, world = served
    monkeypatch.setattr(verbs, "_MOST_AT_ONCE", 2)
    ids = [world.submit().id for _ in range(5)]

    sn("cancel", "--all")

    assert [many for _, many in asked_for] == [2, 2, 1]
    assert states(world, *ids) == [("queued", "cancel")] * 5


def test_job_that_is_so_already_is_said_to_be(served: tuple[Sn, World]) -> None:
    sn, world = served
    ended = world.submit()
    sn("cancel", ended.id)
    world.step()
    waiting = world.submit()

    asked = sn("cancel", ended.id, waiting.id)

    assert asked.exit_code == 0
    assert asked.stdout == f"{ended.id} cancelled, nothing to do\n{waiting.id} queued, cancel requested\n"


def test_refusal_of_one_of_many_is_told_to_programs(served: tuple[Sn, World]) -> None:
    sn, world = served
    done, waiting = world.succeed(), world.submit()

    asked = sn("pause", done.id, waiting.id, "--json")

    assert asked.exit_code == 2
    assert [job["id"] for job in json.loads(asked.stdout)] == [waiting.id]
    problem = json.loads(asked.stderr)
    assert (problem["status"], problem["code"], problem["allowed"]) == (409, "state_conflict", ["delete"])


def test_filters_choose_those_that_can_be_asked(served: tuple[Sn, World]) -> None:
    sn, world = served
    done = world.succeed(labels={"team": "a", "try": "1"})
    one = world.submit(labels={"team": "a", "try": "1"})
    two = world.submit(labels={"team": "a"}, project="other")

    both = sn("cancel", "--label", "team:a", "--label", "try:1")
    rest = json.loads(sn("cancel", "--project", "other", "--json").stdout)
    none = sn("resume", "--all")

    assert [line.split()[0] for line in both.stdout.splitlines()] == [one.id]
    assert [job["id"] for job in rest] == [two.id]
    assert (none.exit_code, none.stdout) == (0, "No job to resume.\n")
    assert states(world, done.id) == [("succeeded", None)]


def test_all_finished_jobs_are_deleted_and_no_other(served: tuple[Sn, World]) -> None:
    sn, world = served
    done, waiting = world.succeed(), world.submit()

    removed = sn("rm", "--all", "--json")

    assert json.loads(removed.stdout) == [{"id": done.id, "state": "deleted"}]
    assert world.store.jobs.get(waiting.id) is not None
    assert sn("show", done.id).exit_code == 2


@pytest.mark.parametrize(("said", "stop"), [("n\n", None), ("\n", None), ("y\n", "cancel"), ("", None)])
def test_person_is_asked_before_many_jobs_are_changed(
    served: tuple[Sn, World], monkeypatch: pytest.MonkeyPatch, said: str, stop: str | None
) -> None:
    sn, world = served
    ids = [world.submit().id for _ in range(2)]
    monkeypatch.setattr(verbs, "_is_interactive", lambda: True)

    asked = sn("cancel", "--all", input=said)

    assert {one for _, one in states(world, *ids)} == {stop}
    assert "cancel 2 jobs?" in asked.stderr
    assert asked.exit_code == (130 if said == "" else 0)
    assert sn("cancel", "--all", "--yes").exit_code == 0


@pytest.mark.parametrize("words", [[], ["x", "--all"], ["x", "--label", "a:b"], ["--label", "a"]])
def test_unclear_choice_is_wrong_use(served: tuple[Sn, World], words: list[str]) -> None:
    sn, world = served
    job = world.submit()

    refused = sn("cancel", *words)

    assert refused.exit_code == 2
    assert states(world, job.id) == [("queued", None)]


@pytest.mark.parametrize("as_list", [False, True])
def test_json_of_one_job_is_an_object_and_of_several_a_list(served: tuple[Sn, World], as_list: bool) -> None:
    sn, world = served
    ids = [world.submit().id for _ in range(1 + as_list)]

    asked = json.loads(sn("pause", *ids, "--json").stdout)

    assert ([job["id"] for job in asked] if as_list else [asked["id"]]) == ids


def test_list_takes_several_states_and_labels(served: tuple[Sn, World]) -> None:
    sn, world = served
    done, waiting = world.succeed(labels={"a": "1"}), world.submit(labels={"a": "1", "b": "2"})

    both = json.loads(sn("ls", "--state", "queued", "--state", "succeeded", "--json").stdout)
    labelled = json.loads(sn("ls", "--label", "a:1", "--label", "b:2", "--json").stdout)

    assert [job["id"] for job in both] == [waiting.id, done.id]
    assert [job["id"] for job in labelled] == [waiting.id]
