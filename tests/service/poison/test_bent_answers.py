"""Whatever Ray or MLflow answer, to all jobs or to one: nothing is lost, and what is well goes on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from syncnorm.service.reconciler import backend_circuit_breaker
from syncnorm.service.store.database import Database
from tests.service.poison.bends import AWAY, ODD, REFUSED, SLOW, leaves, slow
from tests.service.poison.conftest import ON_ONE_DATABASE, NewScene
from tests.service.poison.groups import Faults, culprits, must_be_none
from tests.service.poison.outside import Bend, Outside, Request
from tests.service.poison.scene import TERMINAL, TICKS, VICTIM, Scene

LOOK = ("ray:version", "ray:cluster_status")
"""What a look at the cluster asks for, beside each submission."""
LAUNCH = (
    *("mlflow:experiments/get-by-name", "mlflow:experiments/create", "mlflow:runs/search", "mlflow:runs/create"),
    *("mlflow:runs/log-batch", "ray:job", "ray:submit"),
)
"""What a launch asks for, of each job."""
END = ("mlflow:runs/set-tag", "mlflow:runs/update", "ray:stop")
READ = ("mlflow:health", "mlflow:runs/get", "mlflow:metrics/get-history")
SWEEP = ("ray:jobs", "ray:delete")
ENDPOINTS = (*LOOK, *LAUNCH, *END, *READ, *SWEEP)
BENDS = ODD | REFUSED | AWAY
_SHARE = 60
"""The short forms bend each endpoint in one of so many ways."""


@dataclass(frozen=True)
class Case:
    endpoint: str
    name: str
    bend: Bend

    @property
    def is_refusal(self) -> bool:
        return self.name.startswith("4")


def of(endpoint: str) -> list[Case]:
    return [Case(endpoint, name, bend) for name, bend in BENDS.items()]


def short_form(endpoints: Sequence[str], database: Database) -> list[Case]:
    """Each endpoint bent in some ways, other ones for each endpoint and database."""
    shift = 0 if database.is_sqlite else _SHARE // 2
    return [
        case
        for number, endpoint in enumerate(endpoints)
        for case in of(endpoint)[(7 * number + shift) % _SHARE :: _SHARE]
    ]


def submit(scene: Scene, owner: str, **spec: Any) -> str:
    job_id = scene.submit(json.dumps({**VICTIM, **spec}).encode(), owner)
    assert job_id is not None
    return job_id


# For all jobs


def faults_of(new_scene: NewScene, cases: Sequence[Case], timeout_s: float = 5.0) -> Faults:
    """One after the other in one scene, as long as it recovers."""
    found: Faults = {}
    left = list(cases)
    while left:
        with new_scene(timeout_s=timeout_s) as scene:
            while left and not scene.faults:
                case = left.pop(0)
                weather(scene, case)
            if scene.faults:
                found[f"{case.endpoint}: {case.name}"] = scene.faults
    return found


def weather(scene: Scene, case: Case) -> None:
    """One job trains, one is to be ended by Ray, one is to be launched; then the answers are bent for a while."""
    project = f"p{len(scene.outside.calls)}"
    trains = submit(scene, "ann", labels={"works": "999"}, project=project)
    ends = submit(scene, "ann", labels={"works": "999", "outcome": "deaf"}, limits={"grace_s": 1}, project=project)
    scene.step(2)
    scene.call("POST", f"/v1/jobs/{ends}/cancel")
    waits = submit(scene, "bob", project=f"{project}-new")

    scene.outside.bend = lambda request: case.bend if request.endpoint == case.endpoint else None
    scene.step(3)
    scene.look_everywhere([trains, waits])
    check_told(scene, case, waits)

    scene.outside.bend = lambda _request: None
    check_recovery(scene, case, trains, ends, waits)
    scene.check_ends([trains])


def check_told(scene: Scene, case: Case, waits: str) -> None:
    """What is away is said to be, where an operator and the owner of a job look."""
    ready = scene.call("GET", "/readyz").json()
    if case.endpoint in LOOK:
        reachable = "syncnorm_cluster_reachable 0.0" in scene.call("GET", "/metrics").text
        explained = scene.call("GET", f"/v1/jobs/{waits}/explain").json()["code"]
        if (ready["cluster"], reachable, explained) != (False, True, "cluster_unreachable"):
            scene.faults.append(f"not told: readyz cluster {ready['cluster']}, explain {explained}")
    if case.endpoint == "mlflow:health" and not case.name.startswith(("2", "3", "half", "short")) and ready["mlflow"]:
        scene.faults.append("not told: readyz mlflow true")


def check_recovery(scene: Scene, case: Case, trains: str, ends: str, waits: str) -> None:
    may_fail = case.is_refusal and case.endpoint in LAUNCH
    scene.step_until(lambda: all(scene.state(one) in TERMINAL for one in (ends, waits)))
    states = {"trains": scene.state(trains), "ends": scene.state(ends), "waits": scene.state(waits)}
    wanted = {"trains": "running", "ends": "cancelled", "waits": "failed" if may_fail else "succeeded"}
    if states["waits"] == "succeeded" and may_fail:
        wanted["waits"] = "succeeded"
    if states != wanted:
        scene.faults.append(f"after recovery: {states}")
    scene.step()
    scene.check_ready()
    if not may_fail and not scene.step_until(
        lambda: run_statuses(scene, waits, ends) == ["FINISHED", "KILLED"], 2 * TICKS
    ):
        scene.faults.append(f"after recovery the runs say {run_statuses(scene, waits, ends)}")


def run_statuses(scene: Scene, *jobs: str) -> list[str | None]:
    runs = scene.outside.mlflow.runs.values()
    statuses = {run["tags"].get("syncnorm.job_id"): run["info"]["status"] for run in runs}
    return [statuses.get(job_id) for job_id in jobs]


def test_bent_answer_to_all_is_survived(new_scene: NewScene, database: Database) -> None:
    must_be_none(faults_of(new_scene, short_form(ENDPOINTS, database)))


@pytest.mark.chaos
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_bent_answer_to_all_is_survived_long(new_scene: NewScene, endpoint: str) -> None:
    must_be_none(faults_of(new_scene, of(endpoint)))


@ON_ONE_DATABASE
@pytest.mark.parametrize(("endpoint", "name"), [("ray:version", "silence"), ("mlflow:runs/create", "late")])
def test_slow_answer_to_all_is_survived(new_scene: NewScene, endpoint: str, name: str) -> None:
    must_be_none(faults_of(new_scene, [Case(endpoint, name, SLOW[name])], timeout_s=0.5))


@pytest.mark.chaos
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_slow_answer_to_all_is_survived_long(new_scene: NewScene, endpoint: str) -> None:
    cases = [Case(endpoint, name, bend) for name, bend in SLOW.items()]

    must_be_none(faults_of(new_scene, cases, timeout_s=0.5))


VALUES_OF = [*LOOK, "ray:jobs", "ray:job", "mlflow:runs/create"]


def value_faults(new_scene: NewScene, endpoint: str, share: int = 1) -> Faults:
    """It is left out, or taken for an outage; whichever it is, ticks go on, and all is well afterwards."""
    with new_scene() as scene:
        scene.check_victim()
        scene.step(3)
        cases = [Case(endpoint, name, bend) for name, bend in leaves(scene.outside.samples[endpoint])][::share]
    found: Faults = {}
    left = list(cases)
    while left:
        with new_scene() as scene:
            while left and not scene.faults:
                case = left.pop(0)
                moment(scene, case)
            if scene.faults:
                found[f"{case.endpoint}: {case.name}"] = scene.faults
    return found


@pytest.mark.parametrize("endpoint", VALUES_OF)
def test_one_bent_value_in_an_answer_hurts_nobody(new_scene: NewScene, endpoint: str) -> None:
    must_be_none(value_faults(new_scene, endpoint, 60))


@pytest.mark.chaos
@pytest.mark.parametrize("endpoint", VALUES_OF)
def test_one_bent_value_in_an_answer_hurts_nobody_long(new_scene: NewScene, endpoint: str) -> None:
    must_be_none(value_faults(new_scene, endpoint))


def moment(scene: Scene, case: Case) -> None:
    trains = submit(scene, "ann", labels={"works": "999"})
    scene.step(2)
    scene.outside.bend = lambda request: case.bend if request.endpoint == case.endpoint else None
    submit(scene, "ann")
    scene.step(2)
    scene.call("GET", "/v1/cluster")
    scene.call("GET", "/metrics")
    scene.outside.bend = lambda _request: None
    scene.check_victim()
    scene.check_ends([trains])
    scene.check_ready()


# For one job


def of_one(outside: Outside, job_id: str, project: str, request: Request) -> bool:
    run = outside.mlflow.runs.get(str(request.body.get("run_id")))
    is_run = run is not None and job_id in run["tags"].values()
    return is_run or job_id in request.about or f'"{project}"' in request.about or f"={project}" in request.about


def beside(scene: Scene, cases: Sequence[Case]) -> list[str]:
    """A job for each case, to which alone the answers are bent; a victim; then a cancel under bent answers."""
    bent = {submit(scene, "ann", labels={"works": "999"}, project=f"one{n}"): n for n in range(len(cases))}

    def choose(request: Request) -> Bend | None:
        for job_id, number in bent.items():
            case = cases[number]
            if request.endpoint == case.endpoint and of_one(scene.outside, job_id, f"one{number}", request):
                return case.bend
        return None

    scene.outside.bend = choose
    scene.step(4)
    scene.look_everywhere(list(bent)[:5])
    scene.check_victim()
    scene.check_ready()
    scene.world.clock.advance(600.0)
    scene.step(3)
    check_refused(scene, {job_id: cases[number] for job_id, number in bent.items()})
    scene.check_ends(list(bent), "a job that is answered oddly")
    scene.outside.bend = lambda _request: None
    scene.step(3)
    scene.check_ready()
    return scene.faults


def check_refused(scene: Scene, cases: dict[str, Case]) -> None:
    """A refusal is the fault of this job, which fails with a sentence: it does not hold its capacity for ever.

    `ray:job` only asks what became of it: no answer there is a refusal, and the job waits.
    """
    for job_id, case in cases.items():
        is_launch = case.endpoint in LAUNCH and case.endpoint != "ray:job"
        if case.name in REFUSED and is_launch and scene.state(job_id) == "starting":
            scene.faults.append(f"refused by {case.endpoint}, and holds its capacity for ever")


def culprits_among(new_scene: NewScene, cases: Sequence[Case]) -> Faults:
    def check(group: Sequence[Case]) -> list[str]:
        with new_scene() as scene:
            return beside(scene, group)

    return culprits(cases, check)


def test_bent_answer_to_one_job_hurts_no_other(new_scene: NewScene, database: Database) -> None:
    must_be_none(culprits_among(new_scene, short_form((*LAUNCH, *END[:2]), database)))


@pytest.mark.chaos
@pytest.mark.parametrize("endpoint", [*LAUNCH, *END[:2]])
def test_bent_answer_to_one_job_hurts_no_other_long(new_scene: NewScene, endpoint: str) -> None:
    must_be_none(culprits_among(new_scene, of(endpoint)))


@ON_ONE_DATABASE
@pytest.mark.parametrize(
    ("timeout_s", "patience_s"),
    [(0.4, 0.4), pytest.param(1.0, backend_circuit_breaker.PATIENCE_S, marks=pytest.mark.chaos)],
)
def test_silence_towards_some_jobs_delays_no_other(
    new_scene: NewScene, monkeypatch: pytest.MonkeyPatch, timeout_s: float, patience_s: float
) -> None:
    """There is time for some of them in a tick, and not for all."""
    monkeypatch.setattr(backend_circuit_breaker, "PATIENCE_S", patience_s)
    with new_scene(timeout_s=timeout_s) as scene:
        silent = [submit(scene, "ann", project=f"silent{number}") for number in range(40)]
        scene.outside.bend = lambda request: SLOW["silence"] if "silent" in request.about else None

        scene.step()
        scene.check_victim()

        assert scene.faults == []
        scene.outside.bend = lambda _request: None
        assert scene.step_until(lambda: all(scene.state(one) == "succeeded" for one in silent))


@ON_ONE_DATABASE
def test_description_of_9000_parameters_delays_no_other(new_scene: NewScene) -> None:
    """MLflow takes 100 of them at a time, here each in 50 ms."""
    with new_scene() as scene:
        scene.outside.bend = lambda request: slow(0.05) if request.endpoint == "mlflow:runs/log-batch" else None
        many = {"class_path": "mine.Model", "init_args": {f"class_{number}": number for number in range(9000)}}
        submit(scene, "ann", model=many)

        scene.check_victim()

        assert scene.faults == []
