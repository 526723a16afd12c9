"""Whatever answers in MLflow's place: it is away, odd, or refuses one run; nothing of it holds up another job."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from syncnorm.service.backend_errors import RefusedError, UnreachableError
from syncnorm.service.integrations.mlflow_describer import RunDescriber
from syncnorm.service.integrations.mlflow_runs import MlflowTracker
from syncnorm.service.jobs.job import Job
from syncnorm.service.jobs.study import Study
from syncnorm.service.studies.runs import MlflowStudyRuns
from tests.helpers.fakes import Clock
from tests.helpers.odd_server import AWAY, ODD, Reply, at_most, page, serving, timeout_for
from tests.helpers.service.api import api
from tests.helpers.service.databases import fresh_sqlite
from tests.helpers.service.world import World
from tests.service.api.test_api import problem

LONGEST_S = 4.0
"""Of a few calls, also on a busy host: less than the silence of one that answers nothing."""
ANSWERS: dict[str, Any] = {
    "GET experiments/get-by-name": {
        "experiment": {"experiment_id": "7", "lifecycle_stage": "active", "tags": [{"key": "mlflow.experimentKind"}]}
    },
    "POST runs/search": {},
    "POST runs/create": {"run": {"info": {"run_id": "r1"}}},
    "POST runs/update": {"run_info": {"run_id": "r1"}},
    "GET runs/get": {"run": {"info": {"run_id": "r1"}, "data": {"metrics": [{"key": "norm/bn1/drift"}]}}},
    "GET metrics/get-history": {"metrics": [{"key": "norm/bn1/drift", "value": 0.5, "step": 1}]},
}


@dataclass
class Mlflow:
    """Answers as MLflow does, but for the calls in `bent`. Refuses params by the names in `refuses`."""

    bent: dict[str, Reply] = field(default_factory=dict)
    """By method and endpoint."""
    refuses: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    params: dict[str, str] = field(default_factory=dict)

    def __call__(self, method: str, path: str, sent: Any) -> Reply:
        what = f"{method} {path.removeprefix('/api/2.0/mlflow/')}"
        self.asked.append(what)
        if what in self.bent:
            return self.bent[what]
        if what == "POST runs/log-batch":
            return self._log(sent.get("params", []))
        return Reply(ANSWERS.get(what, {}))

    def _log(self, params: list[dict[str, str]]) -> Reply:
        if bad := self.refuses & {param["key"] for param in params}:
            return Reply({"error_code": "INVALID_PARAMETER_VALUE", "message": f"Invalid value {bad}"}, 400)
        self.params |= {param["key"]: param["value"] for param in params}
        return Reply({})


@contextmanager
def tracker(mlflow: Mlflow) -> Iterator[MlflowTracker]:
    with serving(mlflow) as url:
        made = MlflowTracker(url, timeout_s=timeout_for(mlflow.bent))
        yield made
        made.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with fresh_sqlite(tmp_path) as database:
        yield World(tmp_path, database)


def started(world: World, **spec: Any) -> Job:
    """A job with a run, which tells nothing of it yet."""
    job = world.submit(**spec)
    world.reconciler.tick()
    return world.job(job.id)


CALLS = ["GET experiments/get-by-name", "POST runs/search", "POST runs/create"]
NO_RUNS = ("object",)
"""What MLflow says where there is no run."""


@pytest.mark.parametrize(
    ("what", "odd"),
    [(what, odd) for what in CALLS for odd in (*ODD, *AWAY) if what != "POST runs/search" or odd not in NO_RUNS],
)
def test_run_is_waited_for_while_something_else_answers(world: World, what: str, odd: str) -> None:
    mlflow, job = Mlflow(bent={what: (ODD | AWAY)[odd]}), world.submit()

    with tracker(mlflow) as port:
        with at_most(LONGEST_S), pytest.raises(UnreachableError, match="MLflow at http"):
            port.run_for(job, [], "note")
        mlflow.bent.clear()

        assert port.run_for(job, [], "note").run_id == "r1"


@pytest.mark.parametrize("what", ["POST runs/set-tag", "POST runs/update"])
@pytest.mark.parametrize("odd", ["login page", "null", "list", "half a document", "redirect", *AWAY])
def test_status_is_told_again_after_something_else_answered(what: str, odd: str) -> None:
    with tracker(Mlflow(bent={what: (ODD | AWAY)[odd]})) as port, at_most(LONGEST_S), pytest.raises(UnreachableError):
        port.set_status("r1", "FINISHED", "note")


def test_page_that_is_refused_leaves_the_status(caplog: pytest.LogCaptureFixture) -> None:
    no = Reply({"error_code": "INVALID_PARAMETER_VALUE", "message": "Invalid tag"}, 400)
    mlflow = Mlflow(bent={"POST runs/set-tag": no})

    with tracker(mlflow) as port:
        port.set_status("r1", "KILLED", "note")

    assert mlflow.asked == ["POST runs/update", "POST runs/set-tag"]
    assert "MLflow refused the note of a run; the run keeps its old one" in caplog.text


@pytest.mark.parametrize(
    "run",
    [
        {"run": None},
        {"run": {}},
        {"run": {"info": None}},
        {"run": {"info": {}}},
        {"run": {"info": {"run_id": None}}},
        {"run": {"info": {"run_id": ["r1"]}}},
        {"run": {"info": {"run_id": ""}}},
    ],
)
def test_run_without_a_name_is_none(world: World, run: Any) -> None:
    with tracker(Mlflow(bent={"POST runs/create": Reply(run)})) as port, pytest.raises(UnreachableError):
        port.run_for(world.submit(), [], "note")


@pytest.mark.parametrize("what", CALLS)
def test_refusal_of_one_run_says_why(world: World, what: str) -> None:
    no = Reply({"error_code": "INVALID_PARAMETER_VALUE", "message": "Invalid experiment name"}, 400)

    with tracker(Mlflow(bent={what: no})) as port, pytest.raises(RefusedError, match="Invalid experiment name"):
        port.run_for(world.submit(), [], "note")


@pytest.mark.parametrize("status", [400, 403, 404, 422])
def test_page_of_a_proxy_refuses_nothing(world: World, status: int) -> None:
    with tracker(Mlflow(bent={"POST runs/create": page(status)})) as port, pytest.raises(UnreachableError):
        port.run_for(world.submit(), [], "note")


def test_launch_takes_few_calls_however_large_the_spec(world: World) -> None:
    model = {"class_path": "a.B", "init_args": {f"class {i}": i for i in range(9_900)}}
    job = world.submit(model=model, optimizer={"name": "sgd"})
    mlflow = Mlflow()

    with tracker(mlflow) as port, at_most(3):
        port.run_for(job, [], "note")
        launch = list(mlflow.asked)
        lost = port.describe("r1", job, [])

    assert launch == ["GET experiments/get-by-name", "POST runs/search", "POST runs/create"]
    assert len(mlflow.asked) - len(launch) == 11
    assert lost == []
    assert len(mlflow.params) == 1000
    assert mlflow.params["optimizer.lr"]


def test_refused_param_costs_only_itself(world: World) -> None:
    job, mlflow = world.submit(), Mlflow(refuses={"seed", "norm.kind"})

    with tracker(mlflow) as port:
        lost = port.describe("r1", job, [])

    assert sorted(lost) == ["norm.kind", "seed"]
    assert {"name", "optimizer.lr"} <= mlflow.params.keys()


def test_run_is_described_beside_the_tick_and_again_for_the_next_attempt(world: World) -> None:
    describer = RunDescriber(world.store, world.tracker)
    job = started(world, labels={"outcome": "silent.succeeded", "phases": "none"})
    run_id = job.run_id
    assert run_id is not None
    before = dict(world.tracker.described)

    describer.tick()
    first = dict(world.tracker.described)
    while world.job(job.id).attempt < 2:
        world.step()
    describer.tick()

    assert (before, first, world.tracker.described) == ({}, {run_id: 1}, {run_id: 2})
    assert world.store.descriptions.pending(9) == []


def test_run_that_can_not_be_described_now_holds_up_no_other(world: World) -> None:
    clock = Clock()
    mlflow = Mlflow(bent={"POST runs/log-batch": page()})
    jobs = [started(world, resources={"workers": 1}) for _ in range(3)]

    with tracker(mlflow) as port:
        describer = RunDescriber(world.store, port, clock=lambda: clock().timestamp())
        describer.tick()
        asked = mlflow.asked.count("POST runs/log-batch")
        mlflow.bent.clear()
        clock.advance(60)
        describer.tick()

    assert asked == len(jobs)
    assert world.store.descriptions.pending(9) == []


def test_mlflow_that_is_away_is_not_asked_for_every_run(world: World) -> None:
    mlflow = Mlflow(bent={"POST runs/log-batch": page(503)})
    for _ in range(4):
        started(world, resources={"workers": 1})

    with tracker(mlflow) as port:
        RunDescriber(world.store, port).tick()

    assert mlflow.asked.count("POST runs/log-batch") == 2
    assert len(world.store.descriptions.pending(9)) == 4


@pytest.mark.parametrize("refusal", ["params", "run deleted"])
def test_what_mlflow_refused_is_an_event_of_the_job(world: World, refusal: str) -> None:
    job = started(world)
    gone = Reply({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "No run r1"}, 404)
    bent = {"GET runs/get": gone, "POST runs/log-batch": gone} if refusal == "run deleted" else {}

    with tracker(Mlflow(bent=bent, refuses={"seed"})) as port:
        RunDescriber(world.store, port).tick()

    (told,) = [event for event in world.store.history.events(job.id) if event.kind == "run_incomplete"]
    assert ("seed" if refusal == "params" else "No run r1") in told.message
    assert world.store.descriptions.pending(9) == []


def test_description_that_raises_is_given_up_and_said(world: World) -> None:
    clock, job = Clock(), started(world)
    describer = RunDescriber(world.store, None, clock=lambda: clock().timestamp())  # type: ignore[arg-type]
    for _ in range(5):
        describer.tick()
        clock.advance(60)

    assert world.store.history.events(job.id)[-1].kind == "run_incomplete"
    assert world.store.descriptions.pending(9) == []


@pytest.mark.parametrize("what", ["GET runs/get", "GET metrics/get-history"])
@pytest.mark.parametrize(
    "odd", ["login page", "null", "list", "half a document", "deep", "redirect", "error", "silence"]
)
def test_statistics_are_503_while_something_else_answers(tmp_path: Path, what: str, odd: str) -> None:
    mlflow = Mlflow(bent={what: (ODD | AWAY)[odd]})
    with tracker(mlflow) as port, api(tmp_path) as (client, world):
        client.app.state.context = replace(client.app.state.context, tracker=port)  # type: ignore[attr-defined]
        job = started(world)
        answer = client.get(f"/v1/jobs/{job.id}/statistics")
        mlflow.bent.clear()
        again = client.get(f"/v1/jobs/{job.id}/statistics")

    problem(answer, 503, "mlflow_unreachable")
    assert answer.headers["Retry-After"] == "5"
    assert again.json()["items"][0]["points"] == [
        {"step": 1, "running_mean_abs": None, "running_var_mean": None, "drift": 0.5}
    ]


def test_odd_points_of_a_history_hide_no_other(tmp_path: Path) -> None:
    odd = '{"value": NaN, "step": 1}, {"value": "x"}, null, {"value": 1e999, "step": 2}'
    points = f'{{"metrics": [{odd}, {{"value": 0.25, "step": "3"}}]}}'
    with tracker(Mlflow(bent={"GET metrics/get-history": Reply(points.encode())})) as port:
        assert port.histories("r1", ("norm/",)) == {"norm/bn1/drift": [(3, 0.25)]}


@pytest.mark.parametrize("odd", ["login page", "object", "null", "list", "bad gateway", "silence"])
def test_run_of_a_study_waits_while_something_else_answers(odd: str, world: World) -> None:
    study = Study("study_1", "s", "demo", "ann", {"grid": {}, "seeds": []}, world.clock())
    bent = {"POST runs/create": (ODD | AWAY)[odd]}
    with tracker(Mlflow(bent=bent)) as port, pytest.raises(UnreachableError):
        MlflowStudyRuns(port).run_for_study(study)
