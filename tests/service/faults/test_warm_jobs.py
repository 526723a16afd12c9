"""Jobs in a row whose drivers and ranks are forked from one parent: nothing of one is left, or gets to the next."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from syncnorm.service.client.client import Client
from syncnorm.trainer.forkserver import launcher
from tests.helpers.amounts import amount
from tests.helpers.shared_memory import left_in_shared_memory
from tests.service.conftest import RunningService, eventually
from tests.service.integrations.test_on_ray import wait_for

pytestmark = [pytest.mark.stack, pytest.mark.timeout(1200)]
PARENT = "syncnorm.trainer.forkserver.node_parent"
READY_S = 600


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """One for all tests, since each needs a parent, which takes a while to load everything."""
    settings = {"SYNCNORM_ALLOW_CODE": "1", "SYNCNORM_WARM_JOBS": "1"}
    service = RunningService(tmp_path_factory.mktemp("home"), settings, trains=True)
    yield service
    service.stop()


@pytest.fixture(scope="module")
def client(embedded: RunningService) -> Iterator[Client]:
    with embedded.start() as client:
        yield client


@pytest.fixture(scope="module")
def cold(client: Client, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What the ranks of the first job wrote, for which no parent was ready."""
    return run(client, tmp_path_factory.mktemp("first") / "cold", spoils=False)


def run(client: Client, folder: Path, *, spoils: bool) -> list[Any]:
    """A job of two ranks; what each wrote about its process."""
    folder.mkdir()
    document = {
        "name": "warm",
        "model": {
            "class_path": "tests.helpers.trainer.spoiling_module.Spoiling",
            "init_args": {"folder": str(folder), "spoils": spoils},
        },
        "data": {"name": "digits", "batch_size": 32},
        "train": {"steps": 2},
        "resources": {"workers": 2},
        "export": {"formats": []},
    }
    done = wait_for(client, client.submit(document)["id"], "succeeded", "failed", timeout_s=READY_S)
    assert done["state"] == "succeeded", done["message"]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def parent_of(service: RunningService) -> psutil.Process:
    """The node's parent, once it is ready."""
    folder = Path((service.home / "ray.folder").read_text()) / "warm"

    def ready() -> psutil.Process | None:
        launcher.start_parent(str(folder))  # there is one: this hurries it
        return (
            psutil.Process(int((folder / launcher.LOCK).read_text())) if (folder / launcher.SOCKET).exists() else None
        )

    return eventually(ready, READY_S)


def parents_shown(client: Client) -> float:
    text = httpx.get(f"{client.url}/metrics").text
    (line,) = (one for one in text.splitlines() if one.startswith('syncnorm_warm_parents{forks="jobs"}'))
    return float(line.split()[1])


def left(parent: psutil.Process) -> dict[str, set[Any]]:
    """What may grow from job to job."""
    return {
        "children": {child.pid for child in parent.children(recursive=True)},
        "threads": {thread.id for thread in parent.threads()},
        "files": {path.name for path in Path(f"/proc/{parent.pid}/fd").iterdir()},
        "shared memory": {name for name in left_in_shared_memory() if "syncnorm" in name},
    }


def nothing_more(parent: psutil.Process, before: dict[str, set[Any]], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while more := {name: found for name, now in left(parent).items() if (found := now - before[name])}:
        assert time.monotonic() < deadline, more
        time.sleep(0.1)


def _in_a_row(service: RunningService, client: Client, cold: list[Any], folder: Path, jobs: int) -> None:
    parent = parent_of(service)
    before = left(parent)
    for number in range(jobs):
        warm = run(client, folder / f"warm-{number}", spoils=number % 2 == 0)

        assert all(PARENT in fact.pop("parent") for fact in warm)
        assert warm == [{name: value for name, value in fact.items() if name != "parent"} for fact in cold]
    nothing_more(parent, before)
    assert parent.memory_info().rss < 900 * 2**20


def test_jobs_leave_nothing_behind_and_change_nothing_in_the_next(
    embedded: RunningService, client: Client, cold: list[Any], tmp_path: Path
) -> None:
    _in_a_row(embedded, client, cold, tmp_path, jobs=2)


@pytest.mark.chaos
@pytest.mark.timeout(3600)
def test_two_hundred_jobs_leave_nothing_behind(
    embedded: RunningService, client: Client, cold: list[Any], tmp_path: Path
) -> None:
    _in_a_row(embedded, client, cold, tmp_path, jobs=amount(200))


def test_a_killed_parent_costs_no_job_and_is_replaced(embedded: RunningService, client: Client, tmp_path: Path) -> None:
    killed = parent_of(embedded)
    assert parents_shown(client) == 1
    killed.kill()
    eventually(lambda: not killed.is_running() or killed.status() == psutil.STATUS_ZOMBIE)
    assert parents_shown(client) == 0

    run(client, tmp_path / "after", spoils=False)

    assert parent_of(embedded).pid != killed.pid


def test_parent_ends_with_its_service(embedded: RunningService, client: Client) -> None:
    assert client.is_ready()
    parent = parent_of(embedded)

    embedded.stop()

    eventually(lambda: not parent.is_running() or parent.status() == psutil.STATUS_ZOMBIE)
