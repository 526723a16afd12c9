"""Ray remembers what it ran: that must not slow anything down, nor may it grow without end."""

from __future__ import annotations

import json

from tests.service.poison.conftest import NewScene
from tests.service.poison.outside import listed
from tests.service.poison.scene import VICTIM, Scene

MANY = 20_000


def ended(number: int) -> dict[str, object]:
    """One of former days."""
    return listed(f"job_{number:026d}-1", "SUCCEEDED", "node-1", "syncnorm")


def run_some(scene: Scene, count: int) -> list[str]:
    jobs = [str(scene.submit(json.dumps(VICTIM).encode())) for _ in range(count)]
    scene.step_until(lambda: all(scene.state(job_id) == "succeeded" for job_id in jobs))
    scene.step(4)
    return jobs


def test_20000_ended_submissions_delay_nobody(new_scene: NewScene) -> None:
    with new_scene() as scene:
        scene.outside.ray.history = [ended(number) for number in range(MANY)]

        scene.check_victim()
        scene.check_ready()

        assert scene.faults == []


def test_ended_submission_is_deleted_on_ray(new_scene: NewScene) -> None:
    """Once its capacity is released; Ray's memory stays as long as what runs."""
    with new_scene() as scene:
        jobs = run_some(scene, 10)

        assert set(scene.outside.ray.cluster.submissions) & {f"{job_id}-1" for job_id in jobs} == set()
        assert scene.faults == []


def test_submission_that_ray_does_not_delete_holds_up_nobody(new_scene: NewScene) -> None:
    with new_scene() as scene:
        run_some(scene, 2)
        assert "ray:delete" in {call.endpoint for call in scene.outside.calls}
        scene.outside.ray.cluster.restart()
        run_some(scene, 2)
        scene.check_ready()

        assert scene.faults == []
