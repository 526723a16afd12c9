"""Whatever the workers of a job say, and whatever files they leave: the job ends, and hurts nobody."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from syncnorm.service.store.database import Database
from syncnorm.trainer.contract import protocol
from tests.service.poison import messages
from tests.service.poison.conftest import NewScene
from tests.service.poison.documents import JOB, SHARE, STUDY
from tests.service.poison.extremes import Poison
from tests.service.poison.groups import Faults, culprits, must_be_none, share_of
from tests.service.poison.scene import Scene
from tests.service.poison.stories import latest, look_at

Send = Callable[[Scene, str, Poison], bool]
"""Do it to the attempt of a job; whether it was taken."""
_A_JOB = 20


def start(scene: Scene, count: int) -> list[str]:
    """Jobs that train until they are stopped."""
    jobs = [name for _ in range(count) if (name := scene.submit(json.dumps(JOB).encode())) is not None]
    assert len(jobs) == count
    scene.step(2)
    return jobs


def sort_out(scene: Scene, poisons: Sequence[Poison], send: Send) -> tuple[list[Poison], Faults]:
    """(what is accepted, what was wrong with answers); so many for one attempt as none says too much."""
    jobs = start(scene, 1 + len(poisons) // _A_JOB)
    accepted, faults = [], {}
    for number, poison in enumerate(poisons):
        before = len(scene.faults)
        if send(scene, jobs[number // _A_JOB], poison):
            accepted.append(poison)
        if len(scene.faults) > before:
            faults[poison.name] = scene.faults[before:]
    return accepted, faults


def live_through(scene: Scene, poisons: Sequence[Poison], send: Send) -> list[str]:
    """Each is done to a job of its own."""
    jobs = start(scene, len(poisons))
    for job_id, poison in zip(jobs, poisons, strict=True):
        send(scene, job_id, poison)
    scene.step(2)
    look_at(scene, jobs)
    scene.check_victim()
    scene.check_ready()
    scene.world.clock.advance(60.0)
    scene.step(2)
    scene.check_ends(jobs)
    look_at(scene, jobs)
    scene.check_quiet()
    return scene.faults


def faults_of(new_scene: NewScene, poisons: Sequence[Poison], send: Send) -> Faults:
    with new_scene() as scene:
        accepted, faults = sort_out(scene, poisons, send)

    def check(group: Sequence[Poison]) -> list[str]:
        with new_scene() as scene:
            return live_through(scene, group, send)

    return faults | culprits(accepted, check)


def post(kind: str) -> Send:
    def send(scene: Scene, job_id: str, poison: Poison) -> bool:
        attempt = latest(scene, job_id)
        assert attempt is not None
        content = messages.for_fence(poison.content, attempt.fence)
        return scene.tell(attempt.id, attempt.fence, kind, content).is_success

    return send


def test_extremes_of_every_message_hurt_nobody(new_scene: NewScene, database: Database) -> None:
    kinds = {
        replace(poison, name=f"{kind} {poison.name}"): kind
        for kind in messages.GOOD
        for poison in share_of(list(messages.of_kind(kind, SHARE)), database, 42)
    }

    must_be_none(faults_of(new_scene, list(kinds), lambda scene, job, poison: post(kinds[poison])(scene, job, poison)))


@pytest.mark.chaos
@pytest.mark.parametrize("kind", messages.GOOD)
def test_extremes_of_every_message_hurt_nobody_long(new_scene: NewScene, kind: str) -> None:
    must_be_none(faults_of(new_scene, list(messages.of_kind(kind, 1)), post(kind)))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_value_that_is_not_finite_is_a_value(new_scene: NewScene, value: float) -> None:
    """As workers write it: a metric of a user's that is NaN at the end is an everyday thing."""
    with new_scene() as scene:
        (job_id,) = start(scene, 1)
        attempt = latest(scene, job_id)
        assert attempt is not None
        metrics = {"val/dice": value, "val/loss": 0.5}
        progress = protocol.Progress(
            fence=attempt.fence, epoch=1, epochs=1, step=3, steps=3, metrics=metrics
        ).model_dump_json()
        result = protocol.Result(fence=attempt.fence, outcome="succeeded", step=3, metrics=metrics)

        heard = scene.tell(attempt.id, attempt.fence, "progress", progress.encode())
        write(scene, job_id, protocol.RESULT_FILE, result.model_dump_json().encode())
        scene.world.cluster.kill(attempt.id)
        scene.world.clock.advance(120.0)
        scene.step(2)

        assert (heard.status_code, scene.state(job_id)) == (200, "succeeded")
        scene.look_everywhere([job_id])
        assert scene.faults == []


def write(scene: Scene, job_id: str, name: str, content: bytes) -> Path:
    attempt = latest(scene, job_id)
    assert attempt is not None
    path = Path(protocol.attempt_folder(str(scene.world.folder), job_id, attempt.number)) / name
    path.write_bytes(content)
    return path


def leave_result(scene: Scene, job_id: str, poison: Poison) -> bool:
    """Then the driver is gone."""
    attempt = latest(scene, job_id)
    assert attempt is not None
    write(scene, job_id, protocol.RESULT_FILE, messages.for_fence(poison.content, attempt.fence))
    scene.world.cluster.kill(attempt.id)
    return True


def result_faults(new_scene: NewScene, poisons: Sequence[Poison]) -> Faults:
    def check(group: Sequence[Poison]) -> list[str]:
        with new_scene() as scene:
            return live_through(scene, group, leave_result)

    return culprits(poisons, check)


def test_whatever_result_an_attempt_leaves_hurts_nobody(new_scene: NewScene, database: Database) -> None:
    must_be_none(result_faults(new_scene, share_of(list(messages.of_results()), database, 48)))


@pytest.mark.chaos
def test_whatever_result_an_attempt_leaves_hurts_nobody_long(new_scene: NewScene) -> None:
    must_be_none(result_faults(new_scene, list(messages.of_results())))


def test_odd_line_among_metrics_is_left_out_of_the_report(new_scene: NewScene) -> None:
    lines = [Poison(name, content) for name, content in messages.ODD_LINES.items()]

    def check(group: Sequence[Poison]) -> list[str]:
        with new_scene() as scene:
            return report_on(scene, group)

    must_be_none(culprits(lines, check))


def report_on(scene: Scene, lines: Sequence[Poison]) -> list[str]:
    """A study for each line, whose first job left it among good ones, and one study of somebody else."""
    base = {**STUDY, "base": {**STUDY["base"], "labels": {}}}
    theirs = [scene.submit(json.dumps(base).encode(), to="/v1/studies") for _ in lines]
    victim = scene.submit(json.dumps(base).encode(), "bob", "/v1/studies")
    assert None not in (*theirs, victim)
    scene.step(2)
    for study_id, line in zip([*theirs, victim], [*lines, None], strict=True):
        odd = [line.content] if line else []
        for child, _ in scene.world.store.studies.family(str(study_id)):
            good = [messages.good_line(step) for step in (1, 2, 3)]
            write(scene, child.job_id, protocol.METRICS_FILE, b"\n".join([*good[:2], *odd, *good[2:], b""]))
    scene.step(6)
    for study_id in [*theirs, victim]:
        for path in ("", "/report?format=json", "/report?format=html"):
            scene.call("GET", f"/v1/studies/{study_id}{path}")
        if scene.call("GET", f"/v1/studies/{study_id}").json().get("reported_at") is None:
            scene.faults.append(f"a study of {'bob' if study_id == victim else 'ann'} is not reported")
    scene.check_quiet()
    return scene.faults
