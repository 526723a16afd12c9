"""A real Ray forgets ended submissions when told to, and none that runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from syncnorm.service.backend_errors import UnreachableError
from syncnorm.service.integrations.ray_jobs import RayDispatcher
from syncnorm.service.integrations.ray_sweep import ClusterSweep
from syncnorm.service.jobs.attempt_ending import RayStatus
from syncnorm.service.local.programs import local_ray
from tests.service.conftest import eventually


@pytest.fixture(scope="module")
def ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayDispatcher]:
    with local_ray(tmp_path_factory.mktemp("ray")) as (_, found):
        commands = {"attempt": "true #", "export": "sleep 600 #"}
        made = RayDispatcher(found.url, found.token, commands, owner="me", known=lambda: KNOWN)  # type: ignore[arg-type]

        def answers() -> bool:
            try:
                return made.observe().capacity is not None
            except UnreachableError:
                return False

        with closing(made):
            eventually(answers, 120)
            yield made


KNOWN: set[str] = set()


def test_ended_submissions_are_deleted_and_living_ones_found(ray: RayDispatcher, tmp_path: Path) -> None:
    names = ["old-1", "needed-1", "released-1"]
    KNOWN.update([*names, "never-1"])
    for name in names:
        eventually(lambda name=name: _started(ray, name, tmp_path))  # type: ignore[misc]
    ray.start("stray-1", str(tmp_path), "export")
    eventually(lambda: all(_status(ray, name) is RayStatus.ENDED for name in names), 120)
    KNOWN.difference_update(["old-1", "released-1", "never-1"])
    ray.forget("released-1")

    ClusterSweep(ray, lambda: KNOWN).tick()

    assert set(ray.list_all()) == {"needed-1", "stray-1"}
    assert ray.delete("old-1")
    assert not ray.delete("stray-1")
    assert _status(ray, "stray-1") in (RayStatus.WAITING, RayStatus.RUNNING)
    (node,) = ray.observe().nodes
    assert node.address == "127.0.0.1"


def _started(ray: RayDispatcher, name: str, folder: Path) -> bool:
    try:
        ray.start(name, str(folder))
    except UnreachableError:  # its agent takes a moment longer than its dashboard
        return False
    return True


def _status(ray: RayDispatcher, name: str) -> RayStatus | None:
    seen = ray.observe().submissions.get(name)
    return None if seen is None else seen.status
