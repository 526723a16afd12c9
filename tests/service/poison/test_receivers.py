"""Whatever a receiver of webhooks answers: others get everything at once, and it gets what comes later."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from syncnorm.service.integrations import webhooks
from syncnorm.service.store.database import Database
from tests.service.poison.bends import AWAY, ODD, REFUSED, SLOW, slow
from tests.service.poison.conftest import ON_ONE_DATABASE, NewScene
from tests.service.poison.groups import Faults, must_be_none
from tests.service.poison.outside import Bend
from tests.service.poison.scene import TICKS, VICTIM, Scene

WRONG = {name: bend for name, bend in (ODD | REFUSED | AWAY).items() if not name.startswith(("20", "half", "short"))}
"""A receiver may answer anything with 2xx."""
LONGEST_PAUSE_S = 600.0
"""A receiver that is well again is tried again within so long."""
LONGEST_ASKED_S = 3600.0
"""And one that asked for a longer pause, at the latest within so long."""

_STEPS = 6
"""In so many a job succeeds, and its last event is two seconds old."""


def told(scene: Scene, receiver: str, job_id: str) -> list[str]:
    """Kinds of the events of a job that a receiver was sent, in order."""
    sent = scene.outside.received.get(receiver, [])
    return [event["data"]["kind"] for event in sent if event.get("data", {}).get("job_id") == job_id]


def submit(scene: Scene, **spec: Any) -> str:
    job_id = scene.submit(json.dumps({**VICTIM, **spec}).encode())
    assert job_id is not None
    return job_id


def while_bent(scene: Scene, bend: Bend, pause_s: float = LONGEST_PAUSE_S) -> None:
    """The good receiver is told at once; the odd one, of all it missed, when it is well again."""
    scene.outside.bend = lambda request: bend if request.name == "odd" else None
    first = submit(scene)
    scene.step(_STEPS)
    if "succeeded" not in told(scene, "good", first):
        scene.faults.append("the other receiver is not told")
    scene.outside.bend = lambda _request: None
    second = submit(scene)
    scene.world.clock.advance(pause_s)
    scene.step(TICKS)
    if "succeeded" not in told(scene, "odd", second):
        scene.faults.append("it is not told of later events when it is well again")


def faults_of(new_scene: NewScene, wrong: Sequence[tuple[str, Bend]]) -> Faults:
    found: Faults = {}
    left = list(wrong)
    while left:
        with new_scene(receivers=("odd", "good")) as scene:
            while left and not scene.faults:
                name, bend = left.pop(0)
                while_bent(scene, bend, LONGEST_ASKED_S if name == "503" else LONGEST_PAUSE_S)
            if scene.faults:
                found[name] = scene.faults
    return found


def test_bent_answer_of_a_receiver_delays_nobody(new_scene: NewScene, database: Database) -> None:
    must_be_none(faults_of(new_scene, list(WRONG.items())[database.is_sqlite :: 8]))


@pytest.mark.chaos
def test_bent_answer_of_a_receiver_delays_nobody_long(new_scene: NewScene) -> None:
    must_be_none(faults_of(new_scene, list(WRONG.items())))


@ON_ONE_DATABASE
@pytest.mark.parametrize(
    "name", ["silence", *(pytest.param(one, marks=pytest.mark.chaos) for one in ("late", "trickle"))]
)
def test_slow_receiver_delays_nobody(new_scene: NewScene, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "_TOTAL_S", 1.0)
    with new_scene(receivers=("odd", "good")) as scene:
        while_bent(scene, SLOW[name])
        must_be_none({name: scene.faults} if scene.faults else {})


@ON_ONE_DATABASE
def test_receiver_that_takes_its_time_delays_nobody(new_scene: NewScene) -> None:
    with new_scene(receivers=("odd", "good")) as scene:
        scene.outside.bend = lambda request: slow(0.3) if request.name == "odd" else None
        jobs = [submit(scene) for _ in range(3)]

        scene.step(_STEPS)

        assert all("succeeded" in told(scene, "good", job_id) for job_id in jobs)
        assert scene.faults == []


@pytest.mark.parametrize("code", REFUSED)
def test_event_that_a_receiver_refuses_holds_up_no_later_one(new_scene: NewScene, code: str) -> None:
    with new_scene(receivers=("odd", "good")) as scene:
        poison = submit(scene, name="poison")
        refused = REFUSED[code]
        scene.outside.bend = lambda request: refused if request.name == "odd" and poison in request.about else None
        scene.step(_STEPS)
        later = submit(scene)
        scene.world.clock.advance(LONGEST_PAUSE_S)
        scene.step(TICKS)

        assert "succeeded" in told(scene, "odd", later)
        assert "succeeded" in told(scene, "good", poison)
        assert scene.faults == []
