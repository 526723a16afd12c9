"""One bad row, number or answer is the problem of one job: it ends with its reason, and the others go on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient

from syncnorm.service.api.app import create_app
from syncnorm.service.backend_errors import RefusedError, UnexpectedAnswerError, UnreachableError
from syncnorm.service.integrations.ray_jobs import Submission
from syncnorm.service.jobs.attempt_ending import RayStatus
from syncnorm.service.jobs.job import Job, JobState
from syncnorm.service.store import schema as t
from syncnorm.service.store.administration.leases import LeaseTable
from syncnorm.service.store.database import Database
from syncnorm.service.store.tables.attempts import AttemptTable
from syncnorm.trainer.contract.failure import FailureReason
from tests.helpers.combinations import each_value
from tests.helpers.service.api import _no_lifespan, context_of
from tests.helpers.service.databases import fresh_sqlite, postgres_programs, postgres_server
from tests.helpers.service.world import World

LONG = {"labels": {"works": "99"}}


@pytest.fixture(scope="module")
def postgres() -> Iterator[Database | None]:
    programs = postgres_programs()
    if programs is None:
        yield None
        return
    with postgres_server(programs) as url, closing(Database(url)) as made:
        made.migrate()
        yield made


@pytest.fixture(params=["sqlite", "postgresql"])
def any_world(request: pytest.FixtureRequest, tmp_path: Path, postgres: Database | None) -> Iterator[World]:
    if request.param == "sqlite":
        yield request.getfixturevalue("world")
        return
    if postgres is None:
        pytest.skip("no PostgreSQL server is installed (Debian: apt-get install postgresql)")
    with postgres.write() as c:
        for table in reversed(t.metadata.sorted_tables):
            c.execute(sa.delete(table))
    yield World(tmp_path, postgres)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with fresh_sqlite(tmp_path) as database:
        yield World(tmp_path, database)


_JSON = ("spec", "labels", "progress", "phases", "result")


def poke(world: World, table: str, where: str, **values: Any) -> None:
    """Write to a row what today's service would not write."""
    text = ", ".join(f"{name} = :{name}" for name in values)
    bound = {name: json.dumps(value) if name in _JSON else value for name, value in values.items()}
    key = "job_id" if table == "attempts" else "id"
    with world.database.write() as c:
        c.execute(sa.text(f"UPDATE {table} SET {text} WHERE {key} = :where"), bound | {"where": where})


def run_until(world: World, is_over: Callable[[], bool], steps: int = 60) -> None:
    for _ in range(steps):
        if is_over():
            return
        world.step()
    pytest.fail(f"not over after {steps} steps")


def running(world: World, **spec: Any) -> Job:
    job = world.submit(**LONG | spec)
    run_until(world, lambda: world.job(job.id).state is JobState.RUNNING)
    return world.job(job.id)


def has_ended(world: World, job: Job) -> bool:
    """In the database, whatever the reader of the API is shown meanwhile; with its capacity given back."""
    with world.database.read() as c:
        state = c.execute(sa.text("SELECT state FROM jobs WHERE id = :id"), {"id": job.id}).scalar_one()
    return state in ("failed", "cancelled") and all(one.job_id != job.id for one in world.store.attempts.unreleased())


def has_succeeded(world: World, job: Job) -> bool:
    return world.job(job.id).state is JobState.SUCCEEDED


def client_of(world: World) -> TestClient:
    app = create_app(context_of(world, world.folder, False, {}))
    app.router.lifespan_context = _no_lifespan
    return TestClient(app, raise_server_exceptions=False)


def check_everything_is_shown(world: World, job: Job) -> None:
    with client_of(world) as client:
        paths = ("", "/explain", "/attempts", "/events", "/logs", "/checkpoints")
        answers = [client.get(path) for path in ("/v1/jobs", "/v1/cluster", "/metrics")]
        answers += [client.get(f"/v1/jobs/{job.id}{path}") for path in paths]
        assert [answer.status_code for answer in answers] == [200] * len(answers), [one.text for one in answers]
        assert job.id in {item["id"] for item in answers[0].json()["items"]}


UNREADABLE_JOBS: dict[str, dict[str, Any]] = {
    "unknown state": {"state": "archiving"},
    "unknown stop": {"stop": "explode"},
    "garbage date": {"queued_at": "yesterday"},
    "date without zone": {"created_at": "2026-01-01T00:00:00"},
    "year 12026": {"started_at": "12026-01-01T00:00:00.00000Z"},
    "infinite deadline": {"deadline_s": float("inf")},
    "infinite grace": {"grace_s": float("inf")},
    "spec is a list": {"spec": [1, 2]},
    "labels are a number": {"labels": 3},
}
HOPELESS_ATTEMPTS: dict[str, dict[str, Any]] = {
    "unknown phase": {"phase": "dancing"},
    "garbage start": {"created_at": "x"},
    "result is a list": {"result": [1]},
}


@pytest.mark.parametrize(("name", "is_running"), each_value(list(UNREADABLE_JOBS), [True, False]))
def test_job_of_an_unreadable_row_ends_and_the_others_succeed(any_world: World, name: str, is_running: bool) -> None:
    world, values = any_world, UNREADABLE_JOBS[name]
    poison = running(world) if is_running else world.submit(resources={"workers": 2}, **LONG)
    poke(world, "jobs", poison.id, **values)
    victim = world.submit(resources={"workers": 4})
    check_everything_is_shown(world, poison)

    run_until(world, lambda: has_ended(world, poison) and has_succeeded(world, victim))

    ended = world.job(poison.id)
    assert (ended.state, ended.reason) == (JobState.FAILED, FailureReason.INTERNAL)
    assert next(iter(values)) in ended.message
    assert world.reconciler.health.failed == 0
    check_everything_is_shown(world, poison)


@pytest.mark.parametrize("values", HOPELESS_ATTEMPTS.values(), ids=HOPELESS_ATTEMPTS.keys())
def test_job_of_an_unreadable_attempt_ends_and_its_capacity_is_free(any_world: World, values: dict[str, Any]) -> None:
    world = any_world
    poison = running(world)
    poke(world, "attempts", poison.id, **values)
    victim = world.submit(resources={"workers": 4})
    check_everything_is_shown(world, poison)

    run_until(world, lambda: has_ended(world, poison) and has_succeeded(world, victim))

    ended = world.job(poison.id)
    assert (ended.state, ended.reason) == (JobState.FAILED, FailureReason.INTERNAL)
    assert world.store.attempts.of_job(poison.id)[0].reason is FailureReason.INTERNAL
    assert world.cluster.submissions[f"{poison.id}-1"].status is RayStatus.ENDED
    assert world.reconciler.health.failed == 0
    check_everything_is_shown(world, poison)


@pytest.mark.parametrize(
    "values", [{"phases": {"training": "yesterday"}}, {"phases": [1]}, {"lease_expires_at": "soon"}], ids=str
)
def test_attempt_whose_next_message_mends_its_row_goes_on(any_world: World, values: dict[str, Any]) -> None:
    world = any_world
    odd = running(world)
    poke(world, "attempts", odd.id, **values)
    victim = world.submit()
    check_everything_is_shown(world, odd)

    run_until(world, lambda: has_succeeded(world, victim))

    assert world.job(odd.id).state is JobState.RUNNING
    assert world.reconciler.health.failed == 0


@pytest.mark.parametrize("column", ["spec", "labels", "progress", "model"])
@pytest.mark.parametrize("text", ["{not json", "", '{"half": '])
def test_column_that_holds_no_json_hurts_one_job(world: World, column: str, text: str) -> None:
    """PostgreSQL takes nothing else."""
    poison = running(world)
    victim = world.submit(resources={"workers": 4})
    with world.database.write() as c:
        c.execute(sa.text(f"UPDATE jobs SET {column} = :text WHERE id = :id"), {"text": text, "id": poison.id})
    check_everything_is_shown(world, poison)

    run_until(world, lambda: has_ended(world, poison) and has_succeeded(world, victim))

    assert world.job(poison.id).reason is FailureReason.INTERNAL
    check_everything_is_shown(world, poison)


def test_poison_that_is_cancelled_ends_cancelled(any_world: World) -> None:
    world = any_world
    poison = running(world)
    poke(world, "attempts", poison.id, result=[1])
    world.apply_verb(poison.id, "cancel")
    victim = world.submit(resources={"workers": 4})

    run_until(world, lambda: has_ended(world, poison) and has_succeeded(world, victim))

    ended = world.job(poison.id)
    assert (ended.state, ended.reason) == (JobState.CANCELLED, FailureReason.CANCELLED_BY_USER)


def test_spec_that_todays_version_refuses_fails_its_job_with_the_traceback(any_world: World) -> None:
    world = any_world
    poison = world.submit(resources={"workers": 4})
    spec = world.job(poison.id).spec.document | {"of_version_9": True}
    poke(world, "jobs", poison.id, spec=spec)
    victim = world.submit(resources={"workers": 4})

    run_until(world, lambda: has_ended(world, poison) and has_succeeded(world, victim))

    ended = world.job(poison.id)
    assert "of_version_9: Extra inputs are not permitted" in ended.message
    assert "Traceback (most recent call last)" in ended.message and len(ended.message) < 6000
    event = next(one for one in world.store.history.events(poison.id) if one.kind == "failed")
    assert (event.data or {})["from"] == "starting"
    check_everything_is_shown(world, poison)


@pytest.mark.parametrize("norm", [None, {}, {"group": 0}, {"group": "x", "kind": 3}], ids=str)
def test_queued_job_that_breaks_the_plan_is_taken_out_of_it(any_world: World, norm: Any) -> None:
    world = any_world
    poison = world.submit(resources={"workers": 64, "min_workers": 1})
    spec = world.job(poison.id).spec.document
    poke(
        world, "jobs", poison.id, spec={name: value for name, value in spec.items() if name != "norm"} | {"norm": norm}
    )
    victim = world.submit()

    run_until(world, lambda: has_ended(world, poison) and has_succeeded(world, victim))

    assert world.job(poison.id).reason is FailureReason.INTERNAL
    assert world.reconciler.health.failed == 0


NUMBERS: dict[str, dict[str, Any]] = {
    "eta of 2.1e15 s": {"progress": {"step": 1, "eta_s": 2.1e15}},
    "infinite eta": {"progress": {"step": 1, "eta_s": "Infinity"}},
    "eta is a list": {"progress": {"step": 1, "eta_s": [1]}},
    "progress of another shape": {"progress": {"step": {}, "metrics": 5}},
    "deadline of 1e12 s": {"deadline_s": 1e12, "started_at": "2026-01-01T00:00:00.000000Z"},
    "deadline of 1e300 s": {"deadline_s": 1e300, "started_at": "2026-01-01T00:00:00.000000Z"},
    "grace of 1e300 s": {"grace_s": 1e300},
    "queued in the year 9999": {"queued_at": "9999-12-31T23:59:59.999999Z"},
}


@pytest.mark.parametrize("values", NUMBERS.values(), ids=NUMBERS.keys())
def test_numbers_beyond_the_calendar_hurt_nobody(any_world: World, values: dict[str, Any]) -> None:
    world = any_world
    odd = running(world)
    poke(world, "jobs", odd.id, **values)
    victim = world.submit()
    world.clock.advance(1)
    behind = world.submit(resources={"workers": 4})

    run_until(world, lambda: has_succeeded(world, victim))
    world.step()
    check_everything_is_shown(world, odd)
    world.apply_verb(odd.id, "cancel")
    run_until(world, lambda: has_ended(world, odd) and has_succeeded(world, behind))

    assert world.job(odd.id).state is JobState.CANCELLED
    assert world.reconciler.health.failed == 0


@pytest.mark.parametrize("stalled", [1_025, 10**6, -5])
def test_back_off_of_any_number_of_failures_is_bounded(world: World, stalled: int) -> None:
    job = world.submit(labels={"outcome": "worker_lost", "phases": "none"}, limits={"max_failures": 9})
    poke(world, "jobs", job.id, stalled=stalled)

    run_until(world, lambda: world.job(job.id).failures == 1)

    waits = world.job(job.id).not_before
    assert waits is not None and (waits - world.clock()).total_seconds() <= 600


class Bent:
    """Something between a step and its port that raises for the submissions or runs of some jobs."""

    def __init__(self, port: Any, method: str, error: Callable[[], BaseException], names: set[str]) -> None:
        self._port, self._method, self._error, self._names = port, method, error, names

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._port, name)
        if name != self._method:
            return real

        def act(what: Any, *rest: Any) -> Any:
            text = getattr(what, "id", what)
            if any(one in text for one in self._names):
                raise self._error()
            return real(what, *rest)

        return act


def bend(world: World, port: str, method: str, error: Callable[[], BaseException], *jobs: Job) -> None:
    backends = world.reconciler.backends
    setattr(backends, port, Bent(getattr(backends, port), method, error, {job.id for job in jobs}))


@pytest.mark.parametrize(("port", "method"), [("tracker", "run_for"), ("dispatcher", "start")])
def test_refused_launch_fails_its_job_with_the_sentence(world: World, port: str, method: str) -> None:
    poison = world.submit(resources={"workers": 4})
    bend(world, port, method, lambda: RefusedError("MLflow refused the key 'a(b)' of this run."), poison)
    victim = world.submit(resources={"workers": 4})

    run_until(world, lambda: has_ended(world, poison) and has_succeeded(world, victim), 20)

    ended = world.job(poison.id)
    assert (ended.reason, ended.message) == (FailureReason.INTERNAL, "MLflow refused the key 'a(b)' of this run.")
    assert world.store.attempts.of_job(poison.id)[0].outcome == "failed"


@pytest.mark.parametrize(
    "error",
    [KeyError, lambda: UnexpectedAnswerError("a login page"), RecursionError],
    ids=["key", "odd answer", "recursion"],
)
@pytest.mark.parametrize(("port", "method"), [("tracker", "run_for"), ("dispatcher", "start")])
def test_odd_answers_about_one_launch_do_not_hold_its_capacity_for_ever(
    world: World, port: str, method: str, error: Callable[[], BaseException]
) -> None:
    poison = world.submit(resources={"workers": 2}, limits={"max_failures": 0})
    bend(world, port, method, error, poison)
    world.clock.advance(1)
    other = world.submit()
    world.clock.advance(1)
    behind = world.submit(resources={"workers": 4})

    run_until(world, lambda: has_ended(world, poison) and has_succeeded(world, behind), 90)

    assert has_succeeded(world, other)
    assert world.job(poison.id).reason is FailureReason.STARTUP_TIMEOUT
    assert "could not be launched through MLflow and Ray" in world.job(poison.id).message
    assert world.reconciler.health.failed == 0


def test_outage_of_mlflow_fails_no_job_however_long_it_lasts(world: World) -> None:
    job = world.submit(limits={"max_failures": 0})
    world.tracker.reachable = False

    for _ in range(100):  # two and a half startup timeouts
        world.step()
    waiting = world.job(job.id)
    world.tracker.reachable = True
    run_until(world, lambda: has_succeeded(world, job), 200)

    assert (waiting.failures, waiting.is_terminal) == (0, False)


@pytest.mark.parametrize("answer", [None, "odd"])
def test_processes_of_a_job_that_is_set_aside_are_ended_and_its_capacity_is_released(
    world: World, answer: str | None
) -> None:
    poison = running(world)
    poke(world, "attempts", poison.id, result=[1])
    if answer == "odd":
        bend(world, "dispatcher", "end", KeyError, poison)

    for _ in range(8):
        world.step()
    if answer == "odd":
        world.cluster.submissions[f"{poison.id}-1"] = Submission(RayStatus.UNREACHABLE)
    victim = world.submit(resources={"workers": 4})
    run_until(world, lambda: has_succeeded(world, victim), 160)

    assert has_ended(world, poison)


@pytest.mark.parametrize("error", [KeyError("cluster"), TypeError("null"), UnreachableError("503")], ids=str)
def test_odd_look_at_the_cluster_lets_queued_jobs_be_cancelled(world: World, error: Exception) -> None:
    job = world.submit()
    world.apply_verb(job.id, "cancel")

    def look() -> None:
        raise error

    world.cluster.observe = look  # type: ignore[method-assign,assignment]
    world.step()

    assert world.job(job.id).state is JobState.CANCELLED
    assert world.reconciler.view is None


def test_two_poisons_that_fill_the_cluster_are_set_aside_one_after_the_other(world: World) -> None:
    poisons = [running(world), running(world)]
    for poison in poisons:
        poke(world, "attempts", poison.id, result=[1])
    victim = world.submit(resources={"workers": 4})

    run_until(world, lambda: has_succeeded(world, victim))

    assert {world.job(poison.id).reason for poison in poisons} == {FailureReason.INTERNAL}


def test_defect_that_hits_every_job_ends_them_one_a_minute_not_all_at_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [running(world, resources={"workers": 1}) for _ in range(4)]
    monkeypatch.setattr("syncnorm.service.reconciler.job_step.decide", lambda *_: 1 / 0)

    for _ in range(12):  # a minute
        world.step()

    assert sum(world.job(job.id).is_terminal for job in jobs) == 1


def test_outage_of_the_database_is_no_fault_of_a_job(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    job = running(world)

    def away(*_: Any, **__: Any) -> None:
        raise sa.exc.OperationalError("UPDATE", {}, Exception("database is locked"))

    with monkeypatch.context() as patch:
        patch.setattr("syncnorm.service.reconciler.job_step.decide", away)
        patch.setattr(LeaseTable, "renew", away)
        for _ in range(12):
            with pytest.raises(sa.exc.OperationalError):
                world.reconciler.tick()
            world.clock.advance(5)

    assert world.job(job.id).state is JobState.RUNNING
    assert (world.reconciler.health.in_a_row, world.reconciler.health.is_good) == (12, False)
    world.step()
    assert world.reconciler.health.is_good


def test_metrics_and_explain_name_the_failing_job_and_count_those_set_aside(world: World) -> None:
    poison = running(world)
    poke(world, "attempts", poison.id, result=[1])
    world.step()

    with client_of(world) as client:
        explained = client.get(f"/v1/jobs/{poison.id}/explain").json()
        during = client.get("/metrics").text
        run_until(world, lambda: has_ended(world, poison))
        after = client.get("/metrics").text

    assert explained["code"] == "step_failing"
    assert f'syncnorm_reconciler_item_failing{{item="{poison.id}",kind="row"}}' in during
    assert poison.id not in after
    assert 'syncnorm_reconciler_set_aside_total{kind="row"} 1.0' in after


def test_three_failed_ticks_make_the_service_unready_and_explain_says_so(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = world.submit()
    monkeypatch.setattr("syncnorm.service.reconciler.launch_step.schedule", lambda *_: 1 / 0)

    with client_of(world) as client:
        codes = []
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                world.reconciler.tick()
            codes.append(client.get("/readyz").status_code)
        ready, explained = client.get("/readyz").json(), client.get(f"/v1/jobs/{victim.id}/explain").json()
        lag_s, text = world.reconciler.lag_s(), client.get("/metrics").text
        monkeypatch.undo()
        world.step()
        later = client.get("/readyz")

    assert codes == [200, 200, 503]
    assert (ready["ready"], ready["reconciler"], ready["cluster"]) == (False, False, True)
    assert explained["code"] == "scheduler_failing" and "ZeroDivisionError" in explained["message"]
    assert "syncnorm_reconciler_failed_ticks_total 3.0" in text
    assert "syncnorm_reconciler_consecutive_failures 3.0" in text
    assert world.reconciler.lag_s() < lag_s
    assert (later.status_code, later.json()["role"]) == (200, "leader")


def test_tick_that_starts_nothing_though_it_should_is_a_failed_one(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.submit()
    monkeypatch.setattr(type(world.store.jobs), "move", lambda *_, **__: None)

    with pytest.raises(Exception, match="none could be started"):
        world.reconciler.tick()

    assert world.reconciler.health.in_a_row == 1


def test_export_that_raises_is_given_up_and_the_others_go_on(world: World) -> None:
    one, two = world.succeed(), world.succeed()
    poison, fine = world.export(one), world.export(two)
    with world.database.write() as c:
        c.execute(sa.update(t.exports).where(t.exports.c.job_id == one.id).values(section={"formats": 5}))

    run_until(world, lambda: not world.store.exports.unreleased())

    states = {job.id: world.store.exports.of_job(job.id)[0].state.value for job in (one, two)}
    assert states == {poison.job_id: "failed", fine.job_id: "succeeded"}
    assert world.reconciler.health.failed == 0


def test_release_of_an_attempt_whose_use_can_not_be_added_up_frees_its_capacity(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = world.submit()
    monkeypatch.setattr(AttemptTable, "_add_usage", lambda *_: 1 / 0)

    run_until(world, lambda: has_succeeded(world, job) and not world.store.attempts.unreleased())

    assert world.reconciler.health.failed == 0


def test_files_that_can_not_be_removed_keep_no_others_from_going(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [world.succeed() for _ in range(6)]
    for job in jobs:
        world.store.jobs.delete(world.job(job.id))
        world.clock.advance(1)
    bad = {job.id for job in jobs[:5]}
    real = world.reconciler.backends.storage.ask
    names: list[str] = []

    def refuse_bad_names(act: Callable[[], Any]) -> Any:
        names.append(act.__closure__[0].cell_contents if act.__closure__ else "")  # type: ignore[union-attr]
        if any(name in bad for name in map(str, names[-1:])):
            raise ValueError("no such name")
        return real(act)

    monkeypatch.setattr(world.reconciler.backends.storage, "ask", refuse_bad_names)
    run_until(world, lambda: set(world.store.removals.pending(9)) <= bad, 20)
    assert set(world.store.removals.pending(9)) == bad


def test_ended_and_waiting_jobs_show_no_time_that_is_left(world: World) -> None:
    job = running(world)
    poke(world, "jobs", job.id, progress={"step": 1, "steps": 10, "epoch": 0, "percent": 10.0, "eta_s": 900.0})

    with client_of(world) as client:
        before = client.get(f"/v1/jobs/{job.id}").json()["progress"]["eta_s"]
        world.apply_verb(job.id, "cancel")
        run_until(world, lambda: has_ended(world, job))
        shown = client.get(f"/v1/jobs/{job.id}").json()["progress"]

    assert (before, shown["eta_s"], shown["percent"]) == (900.0, None, 10.0)
    assert (world.job(job.id).progress or {})["eta_s"] is None
