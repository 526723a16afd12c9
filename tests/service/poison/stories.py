"""What happens to a group of poisoned jobs in one scene, and what must hold meanwhile."""

from __future__ import annotations

import json
from collections.abc import Sequence

from syncnorm.service.jobs.job import Attempt
from tests.service.poison.extremes import Poison
from tests.service.poison.groups import Faults
from tests.service.poison.scene import PAGES, Scene

_MOST_LOOKED_AT = 6
"""Jobs of a group whose every page is asked for; of the others the job itself and one page more, in turn."""


def submit_all(scene: Scene, poisons: Sequence[Poison], to: str = "/v1/jobs") -> tuple[dict[str, Poison], Faults]:
    """(what was accepted, by id; what was wrong with answers)."""
    accepted: dict[str, Poison] = {}
    faults: Faults = {}
    for poison in poisons:
        before = len(scene.faults)
        if (name := scene.submit(poison.content, to=to)) is not None:
            accepted[name] = poison
        if len(scene.faults) > before:
            faults[poison.name] = scene.faults[before:]
    del scene.faults[:]
    return accepted, faults


def live_through(scene: Scene, jobs: Sequence[str]) -> list[str]:
    """Jobs that were accepted start, train, tell of it, and are looked at; another one succeeds beside them."""
    scene.step(2)
    for job_id in jobs:
        report_progress(scene, job_id)
    scene.step(2)
    look_at(scene, jobs)
    scene.check_victim()
    scene.check_ready()
    scene.world.clock.advance(600.0)
    scene.step(2)
    check_started(scene, jobs)
    scene.check_ends(jobs)
    scene.look_everywhere([])
    for job_id in jobs:
        scene.call("DELETE", f"/v1/jobs/{job_id}", "ann")
    scene.step()
    scene.check_quiet()
    return scene.faults


def look_at(scene: Scene, jobs: Sequence[str]) -> None:
    scene.look_everywhere(jobs[:_MOST_LOOKED_AT])
    for number, job_id in enumerate(jobs[_MOST_LOOKED_AT:]):
        for page in {PAGES[0], PAGES[number % len(PAGES)]}:
            scene.call("GET", f"/v1/jobs/{job_id}{page}")


def check_started(scene: Scene, jobs: Sequence[str]) -> None:
    """No job holds capacity for ever without being started."""
    for job_id in jobs:
        if scene.state(job_id) == "starting":
            told = scene.call("GET", f"/v1/jobs/{job_id}/explain").json()
            scene.faults.append(f"the poison holds its capacity and never starts: {told.get('code')}")


def live_through_study(scene: Scene, studies: Sequence[str]) -> list[str]:
    """The same with all jobs of studies; each is reported, in MLflow, too."""
    scene.step(3)
    scene.look_everywhere([], studies[:_MOST_LOOKED_AT])
    scene.check_victim()
    for study_id in studies:
        scene.call("POST", f"/v1/studies/{study_id}/cancel", "ann")
    scene.step(6)
    for study_id in studies[:_MOST_LOOKED_AT]:
        scene.call("GET", f"/v1/studies/{study_id}/report?format=json", "ann")
        state = scene.call("GET", f"/v1/studies/{study_id}", "ann").json()
        if state.get("state") != "finished" or state.get("reported_at") is None:
            scene.faults.append(f"the study is {state.get('state')}, reported at {state.get('reported_at')}")
    scene.check_quiet()
    return scene.faults


def latest(scene: Scene, job_id: str) -> Attempt | None:
    attempts = scene.world.store.attempts.of_job(job_id)
    return attempts[-1] if attempts else None


def report_progress(scene: Scene, job_id: str) -> None:
    """What a worker of this very job would say after its first step."""
    attempt = latest(scene, job_id)
    if attempt is None or attempt.ended_at is not None:
        return
    job = scene.world.store.jobs.get(job_id)
    assert job is not None
    train = job.spec.document["train"]
    message = {"fence": attempt.fence, "epoch": 0, "epochs": train["epochs"], "step": 1, "steps": train["steps"]}
    scene.tell(attempt.id, attempt.fence, "progress", json.dumps(message | {"metrics": {"train/loss": 1.0}}).encode())
