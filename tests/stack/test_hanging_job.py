"""A job in which one rank hangs: what each rank does can be seen while it hangs, and after it has failed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from syncnorm.service.cli.code_folder import pack
from syncnorm.service.client.client import Client
from tests.helpers.stack import falls_asleep
from tests.helpers.stack.shell import shell
from tests.stack.conftest import eventually, finished

pytestmark = [pytest.mark.stack, pytest.mark.timeout(400)]

TIMEOUT_S = 30


@pytest.fixture(scope="module")
def job_id(client: Client, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A job that hangs."""
    folder = tmp_path_factory.mktemp("code")
    (folder / "falls_asleep.py").write_bytes(Path(falls_asleep.__file__).read_bytes())
    document = {
        "name": "hangs",
        "model": {"class_path": "falls_asleep.FallsAsleep"},
        "data": {"name": "digits", "batch_size": 32},
        "train": {"epochs": 2},
        "resources": {"workers": 2},
        "limits": {"collective_timeout_s": TIMEOUT_S, "max_failures": 0},
        "code": {"package": client.put_package(pack(folder))["package"]},
    }
    job_id = str(client.submit(document)["id"])
    yield job_id
    client.cancel(job_id) if client.job(job_id)["state"] == "running" else None


def by_rank(found: dict[str, Any]) -> dict[int, str]:
    """The stack of the thread that trains."""
    return {process["rank"]: process["threads"][0]["stack"] for process in found["items"]}


def test_a_rank_that_hangs_and_one_that_waits_for_it_are_seen(client: Client, job_id: str) -> None:
    def asleep() -> dict[int, str] | None:
        if client.job(job_id)["state"] not in ("starting", "running"):
            return None
        stacks = by_rank(client.stacks(job_id))
        return stacks if "in falls_asleep" in stacks.get(1, "") else None

    stacks = eventually(asleep, 200)

    assert stacks.keys() == {-1, 0, 1}
    assert "optimizer" in stacks[0]  # in backward, where DDP waits
    assert "in falls_asleep" not in stacks[0]


def test_once_it_has_failed_the_stacks_of_that_time_are_kept(client: Client, job_id: str) -> None:
    job = finished(client, job_id)
    lines = [line["text"] for line in client.logs(job_id)]

    found = client.stacks(job_id)
    shown = shell(f"syncnorm stacks {job_id} --rank 1", SYNCNORM_URL=client.url)

    assert job["reason"] == "collective_timeout"
    assert not found["is_running"]
    assert "in falls_asleep" in by_rank(found)[1]
    assert "in falls_asleep" in shown
    assert f"see what every rank was doing at that time: syncnorm stacks {job_id}" in lines
