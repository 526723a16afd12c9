"""The scene notices: each fault that the tests here look for is planted once."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable

import pytest

from tests.service.poison.conftest import NewScene
from tests.service.poison.scene import VICTIM, Scene


def tick_raises(scene: Scene, _: pytest.MonkeyPatch) -> None:
    scene.world.reconciler.tick = lambda: 1 / 0  # type: ignore[method-assign,assignment]


def nothing_starts(scene: Scene, _: pytest.MonkeyPatch) -> None:
    scene.world.cluster.nodes = (("node-1", 0.0, 0.0),)


def answer_is_500(scene: Scene, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(scene.context.store.jobs, "count_by_state", lambda: 1 / 0)


def error_is_logged(scene: Scene, _: pytest.MonkeyPatch) -> None:
    logging.getLogger("syncnorm.service.tests").error("something raised")


@pytest.mark.parametrize(
    ("plant", "noticed"),
    [
        (tick_raises, "tick of reconciler failed: ZeroDivisionError"),
        (nothing_starts, "the victim is queued"),
        (answer_is_500, "GET /v1/cluster answered 500"),
        (error_is_logged, "logged: something raised"),
    ],
)
def test_planted_fault_is_noticed(
    new_scene: NewScene,
    monkeypatch: pytest.MonkeyPatch,
    plant: Callable[[Scene, pytest.MonkeyPatch], None],
    noticed: str,
) -> None:
    with new_scene() as scene:
        poison = scene.submit(json.dumps({**VICTIM, "labels": {"works": "999"}}).encode())
        plant(scene, monkeypatch)

        scene.check_victim()
        scene.look_everywhere([str(poison)])
        scene.check_quiet()

        assert any(fault.startswith(noticed) for fault in scene.faults), scene.faults


def test_slow_tick_is_noticed(new_scene: NewScene, monkeypatch: pytest.MonkeyPatch) -> None:
    with new_scene() as scene:
        slept: list[None] = []
        real = scene.world.reconciler.tick
        clock = time.monotonic

        def tick() -> None:
            slept.append(None)
            real()

        scene.world.reconciler.tick = tick  # type: ignore[method-assign]
        monkeypatch.setattr(time, "monotonic", lambda: clock() + 1000 * len(slept))
        scene.step()

        assert scene.faults == ["a tick took 1000 s"]


def test_scene_without_a_fault_shows_none(new_scene: NewScene) -> None:
    with new_scene() as scene:
        scene.check_victim()
        scene.look_everywhere([])
        scene.check_quiet()
        scene.check_ready()

        assert scene.faults == []
