"""Kill -9 of everything that can die, on a real Ray and a real MLflow: nothing is lost, doubled or left behind."""

from __future__ import annotations

import contextlib
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from syncnorm.service.client.client import Client
from tests.helpers.amounts import amount
from tests.service.conftest import RunningService, eventually
from tests.service.integrations.test_on_ray import run_status, spec, wait_for

pytestmark = pytest.mark.stack
SLOW = {"steps": "40", "step_s": "0.1"}


@pytest.fixture
def lasting(outside: dict[str, str], tmp_path: Path) -> Iterator[RunningService]:
    """A service on a Ray and an MLflow that do not die with it."""
    service = RunningService(tmp_path, outside)
    yield service
    service.stop()


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[RunningService]:
    service = RunningService(tmp_path)
    yield service
    service.stop()


@pytest.fixture
def alone() -> Iterator[Path]:
    """A folder for temporary files of one service, with a path short enough for Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="soak-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def starts(service: RunningService, job_id: str) -> list[int]:
    """How often the driver of each attempt of a job was started."""
    folders = sorted((service.home / "storage" / "jobs" / job_id / "attempts").iterdir())
    return [len((folder / "starts").read_text().split()) for folder in folders if (folder / "starts").exists()]


def kill(service: RunningService) -> None:
    assert service.process is not None
    service.process.send_signal(signal.SIGKILL)
    service.process.wait()


def left_over(service: RunningService) -> list[str]:
    """What still runs of any attempt: every driver has its folder in its command line, and no job is under way."""
    mark = str(service.home / "storage" / "jobs")
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # ended meanwhile
            line = " ".join(process.cmdline())
            found += [line] if mark in line else []
    return found


def check(service: RunningService, client: Client, ids: list[str]) -> None:
    """Every job is finished, by drivers that were started once each, and of which none is left."""
    for job_id in ids:
        done = wait_for(client, job_id, "succeeded", "failed", "cancelled")
        assert done["state"] == "succeeded", done["message"]
        assert set(starts(service, job_id)) == {1}
        eventually(lambda done=done: run_status(done) == "FINISHED")
    eventually(lambda: left_over(service) == [])


def descendants(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def _kill_at_random(service: RunningService, kills: int, seed: int) -> None:
    chance = random.Random(seed)
    ids: list[str] = []
    with service.start() as client:
        ids += [client.submit(spec(steps="5"))["id"] for _ in range(2)]
    for _ in range(kills):
        time.sleep(chance.uniform(0.0, 2.0))
        kill(service)
        with service.start() as client:
            ids.append(client.submit(spec(steps="5"))["id"])

    with service.wait_until_ready() as client:
        check(service, client, ids)


def test_killed_service_loses_and_doubles_nothing(lasting: RunningService) -> None:
    _kill_at_random(lasting, kills=2, seed=1)


@pytest.mark.chaos
def test_service_killed_sixty_times_loses_and_doubles_nothing(lasting: RunningService) -> None:
    _kill_at_random(lasting, kills=amount(60), seed=2)


@pytest.mark.chaos
def test_job_outlives_a_killed_driver(lasting: RunningService) -> None:
    with lasting.start() as client:
        job_id = client.submit(spec(**SLOW))["id"]
        wait_for(client, job_id, "running")
        folder = lasting.home / "storage" / "jobs" / job_id / "attempts" / "1"

        psutil.Process(int((folder / "starts").read_text().split()[0])).kill()

        done = wait_for(client, job_id, "succeeded")
        attempts = client.attempts(job_id)
    assert [attempt["outcome"] for attempt in attempts] == ["lost", "succeeded"]
    assert attempts[0]["reason"] == "worker_lost"
    assert done["progress"]["step"] == 40


@pytest.mark.chaos
def test_jobs_outlive_a_killed_ray_head_and_a_killed_mlflow(embedded: RunningService) -> None:
    with embedded.start() as client:
        job_id = client.submit(spec(**SLOW))["id"]
        wait_for(client, job_id, "running")
        assert embedded.process is not None

        for process in descendants(embedded.process.pid):
            with contextlib.suppress(psutil.NoSuchProcess):  # a zombie among them
                line = " ".join(process.cmdline())
                if "gcs_server" in line or "mlflow.server" in line:
                    process.kill()

        done = wait_for(client, job_id, "succeeded", timeout_s=240)
        assert [attempt["outcome"] for attempt in client.attempts(job_id)][-1] == "succeeded"
        eventually(lambda: run_status(done) == "FINISHED")


@pytest.mark.chaos
def test_killed_service_takes_its_ray_and_mlflow_along_and_goes_on_later(embedded: RunningService) -> None:
    with embedded.start() as client:
        job_id = client.submit(spec(**SLOW))["id"]
        wait_for(client, job_id, "running")
    assert embedded.process is not None
    family = descendants(embedded.process.pid)
    assert len(family) > 10

    kill(embedded)

    _, alive = psutil.wait_procs(family, timeout=30)
    assert alive == []
    with embedded.start() as client:
        check(embedded, client, [job_id])


def _fault(service: RunningService, chance: random.Random) -> str:
    """Kill something of a service that runs jobs. What it was."""
    assert service.process is not None
    what = chance.choice(["storage/jobs", "storage/jobs", "gcs_server", "raylet", "mlflow.server", "service"])
    if what == "service":
        kill(service)
        service.start().close()
        return what
    for process in descendants(service.process.pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            if what in " ".join(process.cmdline()):
                process.kill()
                break
    return what


@pytest.mark.chaos
@pytest.mark.timeout(9000)
def test_soaked_service_leaves_no_process_and_no_folder(tmp_path: Path, alone: Path) -> None:
    """Jobs of 1 to 5 s, and all faults mixed, for two hours (T18)."""
    service = RunningService(tmp_path, {"TMPDIR": str(alone)})
    chance, ids, told = random.Random(18), [], []
    try:
        service.start().close()
        end = time.monotonic() + amount(7200)
        while time.monotonic() < end:
            with service.wait_until_ready() as client:
                waiting = sum(1 for _ in client.jobs(state="queued"))  # a fault may cost more than two jobs take
                steps = [chance.randint(10, 50) for _ in range(2 if waiting < 10 else 0)]
                ids += [client.submit(spec(steps=str(count), step_s="0.1"))["id"] for count in steps]
            time.sleep(chance.uniform(0, 4))
            told.append(_fault(service, chance))
        with service.wait_until_ready() as client:
            for job_id in ids:
                done = wait_for(client, job_id, "succeeded", "failed", timeout_s=300)
                assert (done["state"], set(starts(service, job_id))) == ("succeeded", {1}), (done["message"], told)
            eventually(lambda: left_over(service) == [])
        assert service.process is not None
        family = descendants(service.process.pid)
    finally:
        service.stop()

    _, alive = psutil.wait_procs(family, timeout=30)
    print(f"{len(ids)} jobs under {len(told)} faults: {Counter(told)}")
    assert alive == []
    assert list(alone.glob("sn-*")) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_service_leaves_no_process_at_any_moment(embedded: RunningService, number: signal.Signals) -> None:
    address = embedded.home / "service.json"
    embedded.launch()
    process = embedded.process
    assert process is not None
    eventually(address.exists, 60)
    family: dict[int, psutil.Process] = {one.pid: one for one in descendants(process.pid)}

    process.send_signal(number)

    process.wait(60)
    _, alive = psutil.wait_procs(list(family.values()), timeout=30)
    assert alive == []
    assert not address.exists()
