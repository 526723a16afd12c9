"""A storage that isn't mounted is away: nothing is created in its place, and nobody is called lost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from syncnorm.service.jobs.job import JobState
from syncnorm.service.reconciler.backends import AttemptEnvironment
from syncnorm.service.storage.circuit_breaker import StorageCircuitBreaker
from syncnorm.service.storage.code_packages import CodePackages
from syncnorm.service.storage.storage_marker import MARKER, StorageMarker
from syncnorm.trainer.contract.protocol import RESULT_FILE
from syncnorm.trainer.errors import StorageError
from syncnorm.trainer.storage.storage import storage_at
from tests.helpers.service.api import api
from tests.helpers.service.databases import fresh_sqlite
from tests.helpers.service.world import World
from tests.service.api.test_api import problem


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with fresh_sqlite(tmp_path) as database:
        yield World(tmp_path, database)


def keep_in(world: World, root: Path) -> StorageMarker:
    """Have the service keep everything in `root`, as it does from its start on."""
    marker = StorageMarker(world.store.installation, str(root))
    backends = world.reconciler.backends
    backends.environment = AttemptEnvironment(str(root), "http://nobody", "http://nobody")
    backends.storage = StorageCircuitBreaker(lambda: world.clock().timestamp(), marker.check)
    backends.storage.is_usable()
    return marker


@contextmanager
def unmounted(root: Path, *, mount_point: bool) -> Iterator[None]:
    aside = root.with_name("elsewhere")
    root.rename(aside)
    if mount_point:
        root.mkdir()
    try:
        yield
        assert list(root.iterdir() if mount_point else root.parent.glob(root.name)) == []
    finally:
        if mount_point:
            root.rmdir()
        aside.rename(root)


@pytest.mark.parametrize("mount_point", [False, True])
def test_job_that_succeeded_is_not_lost_while_its_storage_is_not_mounted(world: World, mount_point: bool) -> None:
    root = world.folder / "storage"
    keep_in(world, root)
    job, waiting = world.submit(resources={"workers": 4}), world.submit()
    while not (root / "jobs" / job.id / "attempts" / "1" / RESULT_FILE).exists():
        world.step()

    with unmounted(root, mount_point=mount_point):
        for _ in range(30):
            world.step()
        meanwhile, usable = world.job(job.id), world.reconciler.backends.storage.is_usable()
    for _ in range(12):
        world.step()

    assert (meanwhile.is_terminal, meanwhile.attempt, meanwhile.failures, usable) == (False, 1, 0, False)
    assert [world.job(one.id).state for one in (job, waiting)] == [JobState.SUCCEEDED] * 2
    assert world.reconciler.backends.storage.is_usable()


def test_new_storage_is_marked_once(world: World) -> None:
    root = world.folder / "storage"

    keep_in(world, root)
    first = (root / MARKER).read_text()
    keep_in(world, root)

    assert json.loads(first)["installation"] == world.store.installation.id()
    assert (root / MARKER).read_text() == first


def test_storage_in_use_gets_its_marker_at_the_upgrade(world: World) -> None:
    root = world.folder / "storage"
    world.reconciler.backends.environment = AttemptEnvironment(str(root), "http://nobody", "http://nobody")
    world.succeed()

    keep_in(world, root)

    assert (root / MARKER).exists()


@pytest.mark.parametrize("is_there", [False, True])
def test_storage_that_is_away_at_the_upgrade_is_not_marked(world: World, is_there: bool) -> None:
    root = world.folder / "storage"
    world.succeed()
    if is_there:
        root.mkdir()

    marker = keep_in(world, root)

    with pytest.raises(StorageError, match=r"is not mounted: it has no syncnorm-storage.json. Mount it"):
        marker.check()
    assert root.exists() == is_there
    assert not (root / MARKER).exists()


@pytest.mark.parametrize("content", ['{"installation": "inst_other"}', "", "[]", "{}", '{"install', "\x00\x00"])
def test_storage_of_somebody_else_is_not_touched(world: World, content: str) -> None:
    root = world.folder / "storage"
    root.mkdir()
    (root / MARKER).write_text(content)
    marker = keep_in(world, root)

    with pytest.raises(StorageError, match="belongs to another installation"):
        marker.check()

    assert (root / MARKER).read_text() == content


def test_moved_storage_is_known_by_its_marker_and_a_new_one_is_marked(world: World) -> None:
    keep_in(world, world.folder / "first")
    world.succeed()
    (world.folder / "first").rename(world.folder / "second")

    keep_in(world, world.folder / "second").check()
    keep_in(world, world.folder / "third").check()


def test_bucket_is_marked_and_known_again(world: World, bucket: str) -> None:
    marker = StorageMarker(world.store.installation, f"{bucket}/runs")
    marker.check()
    StorageMarker(world.store.installation, f"{bucket}/runs").check()
    storage_at(f"{bucket}/runs").remove(MARKER)
    marker.check()  # believed for some seconds

    with pytest.raises(StorageError, match="is not mounted"):
        StorageMarker(world.store.installation, f"{bucket}/runs").check()


def test_package_is_not_written_beside_a_storage_that_is_not_mounted(tmp_path: Path) -> None:
    with api(tmp_path, allow_code=True) as (client, world):
        root = tmp_path / "storage"
        marker = keep_in(world, root)
        context = client.app.state.context  # type: ignore[attr-defined]
        client.app.state.context = replace(context, packages=CodePackages(str(root), marker.check))  # type: ignore[attr-defined]
        with unmounted(root, mount_point=False):
            ready = client.get("/readyz").json()
            answer = client.put(f"/v1/packages/{'0' * 64}", content=b"PK", headers={"Content-Type": "application/zip"})
        again = client.get("/readyz").json()

    assert (ready["storage"], again["storage"]) == (False, True)
    assert answer.status_code in (422, 503)
    if answer.status_code == 503:
        problem(answer, 503, "storage_unreachable")
