"""A finished job is exported again: asked for once, done once, whatever dies meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from syncnorm.service.jobs.attempt_ending import Observation, RayStatus
from syncnorm.service.jobs.exports.export import MOST_STARTS, Begin, Export, ExportState, Update, decide_export
from syncnorm.service.jobs.lifecycle import StopOnRay
from syncnorm.service.reconciler.backends import attempt_token
from syncnorm.service.reconciler.export_step import MOST_AT_ONCE
from syncnorm.service.storage import attempt_files as files
from syncnorm.trainer.contract.failure import FailureReason
from syncnorm.trainer.contract.protocol import ExportRequest, Result
from syncnorm.trainer.contract.spec import ExportSpec
from syncnorm.trainer.errors import SupersededError
from syncnorm.trainer.reporting.fence_check import require_current
from tests.helpers.service.api import SPEC, api
from tests.helpers.service.databases import fresh_sqlite
from tests.helpers.service.dying import Died, Dying, new_world
from tests.helpers.service.world import World
from tests.service.api.test_api import Running, problem
from tests.service.integrations.test_secrets import through

MAX_STEPS = 80
START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with fresh_sqlite(tmp_path) as database:
        yield World(tmp_path, database)


def finish(world: World, job_id: str) -> list[Export]:
    """Step until nothing of any export is left; a service that dies is started again."""
    for _ in range(MAX_STEPS):
        if not world.store.exports.unreleased():
            return world.store.exports.of_job(job_id)
        try:
            world.step()
        except Died:
            world.boot()
    pytest.fail(f"not over after {MAX_STEPS} steps: {world.store.exports.of_job(job_id)}")


def check_settled(world: World, export: Export) -> None:
    """Each of its starts was made once, none was taken for an orphan, and nothing of it runs."""
    ids = [replace(export, starts=number).submission_id for number in range(1, export.starts + 1)]
    assert [world.cluster.starts[name] for name in ids] == [1] * export.starts
    assert not set(ids) & set(world.cluster.ended)
    assert not world.cluster.exporters
    kinds = [event.kind for event in world.store.history.events(export.job_id) if event.kind.startswith("export_")]
    assert kinds.count("export_queued") == 1
    assert kinds.count("export_started") == export.starts
    assert kinds.count(f"export_{export.state}") == 1


@dataclass(frozen=True)
class Story:
    """exports: what becomes of each start. restart: the cluster loses its memory during the first."""

    exports: str
    ends: ExportState
    starts: int
    reason: FailureReason | None = None
    restart: bool = False
    labels: dict[str, str] = field(default_factory=dict)


STORIES = {
    "succeeds": Story("succeeded", ExportState.SUCCEEDED, 1, labels={"export_works": "3"}),
    "lost once": Story("silent.succeeded", ExportState.SUCCEEDED, 2),
    "lost each time": Story("silent", ExportState.FAILED, MOST_STARTS, FailureReason.WORKER_LOST),
    "user error": Story("user_error", ExportState.FAILED, 1, FailureReason.USER_ERROR),
    "internal, then fine": Story("internal.succeeded", ExportState.SUCCEEDED, 2),
    "cluster restarts": Story("succeeded", ExportState.SUCCEEDED, 2, restart=True, labels={"export_works": "3"}),
}


def tell(world: World, story: Story, dying: Dying, point: int | None) -> Export:
    job = world.succeed(labels={"exports": story.exports} | story.labels)
    world.export(job, formats=["onnx"])
    dying.seen, dying.at, dying.places = 0, point, []
    dying.state = lambda: _place(world.store.exports.of_job(job.id)[0])
    restart = story.restart
    for _ in range(MAX_STEPS):
        left = world.store.exports.unreleased()
        if not left:
            break
        if restart and world.cluster.exporters:
            restart = False
            world.cluster.restart()
        try:
            world.step()
        except Died:
            world.boot()
    (export,) = world.store.exports.of_job(job.id)
    assert export.released_at is not None, export
    return export


def _place(export: Export) -> object:
    """Where a death may make a difference: in each state of the first start, and of a later one."""
    return export.state, min(export.starts, 2), export.submitted_at is None


@pytest.mark.parametrize("name", STORIES)
def test_export_ends_well_wherever_the_service_dies(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    story, dying = STORIES[name], Dying()
    monkeypatch.setattr(files, "write_export", dying.around("files.write_export", files.write_export))
    with new_world(tmp_path / "quiet", dying) as world:
        tell(world, story, dying, None)
    places = dying.places
    assert {"store.exports.change", "cluster.start", "files.write_export"} <= {effect for effect, _ in places}
    points = [places.index(place) for place in dict.fromkeys(places) if place[0] != "store.leases.take"]

    for point in points:
        with new_world(tmp_path / str(point), dying) as world:
            export = tell(world, story, dying, point)

            assert (export.state, export.starts, export.reason) == (story.ends, story.starts, story.reason), point
            check_settled(world, export)


def test_request_names_the_certified_weights_and_what_is_wanted_now(world: World) -> None:
    job = world.succeed(labels={"export_works": "9"})
    world.export(job, formats=["onnx"], fold=False, register_as="mine")
    world.step()

    (exporter,) = world.cluster.exporters.values()

    request = exporter.request
    assert request.source == f"{world.folder}/jobs/{job.id}/attempts/1/export"
    assert request.spec.export == ExportSpec(formats=["onnx"], fold=False, register_as="mine")
    assert (request.mlflow_run_id, request.name) == (job.run_id, "2")
    assert (Path(exporter.folder) / "export.json").stat().st_mode & 0o077 == 0  # it holds a token


def test_result_of_a_start_that_was_given_up_counts_for_nothing(world: World) -> None:
    job = world.succeed(labels={"exports": "silent.user_error", "export_works": "2"})
    world.export(job)
    world.step()
    (zombie,) = world.cluster.exporters.values()
    fence = zombie.request.fence
    world.cluster.restart()
    while world.store.exports.of_job(job.id)[0].starts < 2:
        world.step()
    late = Result(fence=fence, outcome="succeeded").model_dump_json()
    (zombie.folder / "result.json").write_text(late)
    (zombie.folder.parent / "2" / "result.json").write_text(late)

    (export,) = finish(world, job.id)

    assert (export.state, export.reason) == (ExportState.FAILED, FailureReason.USER_ERROR)


def test_few_exports_run_at_once_and_all_get_their_turn(world: World) -> None:
    job = world.succeed(labels={"export_works": "2"})
    for _ in range(MOST_AT_ONCE + 3):
        world.export(job)
    most = 0

    while world.store.exports.unreleased():
        world.step()
        most = max(most, len(world.cluster.exporters))

    assert most == MOST_AT_ONCE
    assert {export.state for export in world.store.exports.of_job(job.id)} == {ExportState.SUCCEEDED}


def test_nothing_is_concluded_while_ray_is_away_but_a_result_counts(world: World) -> None:
    job = world.succeed(labels={"export_works": "1"})
    world.export(job)
    world.step()
    (exporter,) = world.cluster.exporters.values()
    world.cluster.reachable = False
    for _ in range(9):
        world.reconciler.tick()
        world.clock.advance(60)
    silent = world.store.exports.of_job(job.id)[0]
    result = exporter.result()
    assert result is not None
    (exporter.folder / "result.json").write_text(result.model_dump_json())

    world.reconciler.tick()

    assert silent.state is ExportState.RUNNING
    assert world.store.exports.of_job(job.id)[0].state is ExportState.SUCCEEDED


def running_export(**changes: Any) -> Export:
    about = {"starts": 1, "fence": "f", "session": "s", "begun_at": START, "submitted_at": START}
    return Export("job_1", 2, {}, ExportState.RUNNING, START, **(about | changes))


def test_export_that_hangs_is_ended_once() -> None:
    observation = Observation(START + timedelta(hours=2), ray=RayStatus.RUNNING, session="s")

    first = decide_export(running_export(), observation)
    after = decide_export(running_export(stop_sent_at=observation.now), observation)

    assert isinstance(first, StopOnRay)
    assert after is None


def test_export_that_ray_finds_again_is_not_lost() -> None:
    gone = running_export(gone_at=START)

    decision = decide_export(gone, Observation(START + timedelta(minutes=1), ray=RayStatus.RUNNING, session="s"))

    assert decision == Update({"gone_at": None})


@pytest.mark.parametrize(
    ("not_before", "starts"),
    [
        (START - timedelta(seconds=1), True),
        (START + timedelta(seconds=40), False),
        (START + timedelta(seconds=41), True),
        (datetime.max.replace(tzinfo=UTC), True),
    ],
)
def test_export_waits_no_longer_than_any_pause(not_before: datetime, starts: bool) -> None:
    """A clock that was set back, or a damaged row, must not keep the job from being exported and deleted."""
    waiting = Export("job_1", 2, {}, ExportState.QUEUED, START, starts=1, not_before=not_before)

    assert decide_export(waiting, Observation(START, session="s")) == (Begin() if starts else None)


def test_process_that_lingers_after_its_result_is_ended() -> None:
    done = replace(running_export(), state=ExportState.SUCCEEDED, finished_at=START)
    observation = Observation(START, ray=RayStatus.RUNNING, session="s")

    assert decide_export(done, observation) is None
    assert isinstance(decide_export(done, replace(observation, now=START + timedelta(minutes=1))), StopOnRay)


# The API


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    with api(tmp_path) as pair:
        yield pair


def test_later_export_is_asked_for_listed_and_found(running: Running) -> None:
    client, world = running
    job = world.succeed()
    url = f"/v1/jobs/{job.id}/exports"

    asked = client.post(url, json={"formats": ["onnx"], "register_as": "mine"})
    finish(world, job.id)
    found = client.get(asked.headers["location"]).json()

    assert (asked.status_code, asked.headers["location"]) == (201, f"{url}/2")
    assert (asked.json()["state"], asked.json()["certificate"]) == ("queued", None)
    assert (found["state"], found["path"], found["starts"]) == ("succeeded", "exports/2", 1)
    wanted = {"formats": ["onnx"], "fold": True, "register_as": "mine"}
    assert wanted.items() <= found["export"].items()
    assert (found["uri"], found["passed"], found["files"]) == ("models:/m-1", True, {"model.onnx": "0" * 64})
    assert client.get(url).json()["items"][-1] == found
    assert world.job(job.id).version == job.version


def test_failed_export_says_why_and_whose_turn_it_is(running: Running) -> None:
    client, world = running
    job = world.succeed(labels={"exports": "checkpoint_corrupt"})
    url = client.post(f"/v1/jobs/{job.id}/exports", json={}).headers["location"]

    finish(world, job.id)

    found = client.get(url).json()
    assert (found["state"], found["reason"], found["passed"]) == ("failed", "checkpoint_corrupt", None)
    assert found["message"].startswith("It raised. No checkpoint of the job passes its digests.")


def test_same_key_asks_for_one_export(running: Running) -> None:
    client, world = running
    job, other = world.succeed(), world.succeed()
    url, headers = f"/v1/jobs/{job.id}/exports", {"Idempotency-Key": "k"}

    first = client.post(url, json={}, headers=headers)
    again = client.post(url, json={}, headers=headers)

    assert again.json() == first.json()
    assert again.headers["idempotency-replayed"] == "true"
    assert again.headers["location"] == first.headers["location"]
    assert len(world.store.exports.of_job(job.id)) == 1
    problem(client.post(url, json={"fold": False}, headers=headers), 422, "idempotency_key_reused")
    problem(client.post(f"/v1/jobs/{other.id}/exports", json={}, headers=headers), 422, "idempotency_key_reused")


def test_job_that_has_not_succeeded_is_not_exported(running: Running) -> None:
    client, world = running
    job = world.submit()

    body = problem(client.post(f"/v1/jobs/{job.id}/exports", json={}), 409, "state_conflict")

    assert (body["state"], body["allowed"]) == ("queued", ["succeeded"])
    assert world.store.exports.of_job(job.id) == []


@pytest.mark.parametrize(
    ("body", "pointer"),
    [({"formats": ["gif"]}, "/formats/0"), ({"name": "x"}, "/name"), ([], ""), ({"fold": 1}, "/fold")],
)
def test_bad_section_is_refused_by_field(running: Running, body: Any, pointer: str) -> None:
    client, world = running
    job = world.succeed()

    refused = problem(client.post(f"/v1/jobs/{job.id}/exports", json=body), 422, "invalid_spec")

    assert [error["pointer"] for error in refused["errors"]] == [pointer]
    assert world.store.exports.of_job(job.id) == []


def test_exports_are_for_the_owner_with_the_scope(tmp_path: Path) -> None:
    with api(tmp_path, auth=True, max_queued=1) as (client, world):
        job = world.succeed()

        def as_(owner: str, *scopes: str) -> dict[str, str]:
            made = client.post("/v1/tokens", json={"owner": owner, "scopes": list(scopes)}).json()
            return {"Authorization": f"Bearer {made['token']}"}

        url = f"/v1/jobs/{job.id}/exports"
        problem(client.post(url, json={}, headers=as_("bob", "read", "submit")), 404, "not_found")
        problem(client.get(url, headers=as_("bob", "read")), 404, "not_found")
        problem(client.post(url, json={}, headers=as_("ann", "read")), 403, "forbidden")
        mine = as_("ann", "submit", "read")
        assert client.post(url, json={}, headers=mine).status_code == 201
        assert problem(client.post(url, json={}, headers=mine), 429, "too_many_exports")
        assert client.get(f"{url}/2", headers=mine).status_code == 200
        for name in ("1", "3", "02", "x"):
            problem(client.get(f"{url}/{name}", headers=mine), 404, "not_found")


def test_job_stays_while_an_export_of_it_runs(running: Running) -> None:
    client, world = running
    job = world.succeed(labels={"export_works": "3"})
    client.post(f"/v1/jobs/{job.id}/exports", json={})
    world.step()

    refused = problem(client.delete(f"/v1/jobs/{job.id}"), 409, "state_conflict")
    finish(world, job.id)

    assert "export 2 still runs on the cluster" in refused["detail"]
    assert (refused["state"], refused["allowed"]) == ("succeeded", [])

    assert client.delete(f"/v1/jobs/{job.id}").status_code == 204
    assert world.store.exports.of_job(job.id) == []


def test_export_that_waits_goes_with_its_job(running: Running) -> None:
    client, world = running
    job = world.succeed()
    client.post(f"/v1/jobs/{job.id}/exports", json={})

    assert client.delete(f"/v1/jobs/{job.id}").status_code == 204
    for _ in range(3):
        world.step()

    assert world.store.exports.unreleased() == []
    assert world.cluster.exporters == {}


def test_export_fetches_the_secrets_of_its_job_while_it_runs(running: Running) -> None:
    client, world = running
    client.put("/v1/secrets/HUB", json={"value": "canary-value"})
    made = client.post(
        "/v1/jobs", json=SPEC | {"env": {"T": {"secret": "HUB"}}, "labels": {"export_works": "2"}}
    ).json()
    while not world.job(made["id"]).is_terminal:
        world.step()
    client.post(f"/v1/jobs/{made['id']}/exports", json={})
    world.step()
    (exporter,) = world.cluster.exporters.values()
    request = exporter.request

    def request_secrets(request: ExportRequest, token: str) -> Any:
        headers = {"Authorization": f"Bearer {token}"}
        return client.post(request.secrets_path, json={"fence": request.fence}, headers=headers)

    assert request.token == attempt_token(request.fence)
    assert request_secrets(request, request.token).json() == {"values": {"T": "canary-value"}}
    assert request_secrets(request, "0" * 64).status_code == 401
    assert request_secrets(request.model_copy(update={"fence": "0" * 32}), attempt_token("0" * 32)).status_code == 409
    finish(world, made["id"])
    assert request_secrets(request, request.token).status_code == 409
    assert "canary-value" not in (exporter.folder / "export.json").read_text()


def test_start_of_an_export_hears_whether_it_still_counts(running: Running) -> None:
    client, world = running
    job = world.succeed(labels={"exports": "silent.succeeded", "export_works": "2"})
    world.export(job)
    world.step()
    (first,) = world.cluster.exporters.values()

    require_current(first.request, through(client))
    finish(world, job.id)

    with pytest.raises(SupersededError, match="has taken over"):
        require_current(first.request, through(client))
