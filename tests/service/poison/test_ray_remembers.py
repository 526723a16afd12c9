"""A real Ray that remembers 20,000 ended submissions starts jobs as one that remembers none."""

from __future__ import annotations

import shlex
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from syncnorm.service.client.client import Client
from syncnorm.service.integrations.ray_jobs import RayDispatcher
from syncnorm.service.jobs.attempt_ending import RayStatus
from syncnorm.service.local.programs import LocalRay, local_ray
from tests.helpers.service.fake_cluster import fake_servers
from tests.service.conftest import RunningService, eventually
from tests.service.poison.scene import VICTIM

MANY = 20_000
FILL = Path(__file__).with_name("fill_ray.py")


def asked(ray: LocalRay, name: str) -> dict[str, Any] | None:
    """What Ray remembers of a submission. A list of all would take it minutes."""
    headers = {"Authorization": f"Bearer {ray.token}"}
    answer = httpx.get(f"{ray.url}/api/jobs/{name}", headers=headers, timeout=60, trust_env=False)
    found: dict[str, Any] | None = answer.json() if answer.is_success else None
    return found


def remembered(ray: LocalRay) -> int:
    """How many of the records are there, by one of two hundred of them."""
    return sum(200 for number in range(0, MANY, 200) if asked(ray, f"job_{number:026d}-1"))


def fill(ray: LocalRay, owner: str) -> None:
    command = f"{shlex.quote(sys.executable)} {shlex.quote(str(FILL))} {MANY}"
    entrypoints = {"attempt": command, "export": command}
    known = {"fill-1"}
    with closing(RayDispatcher(ray.url, ray.token, entrypoints, owner="fill", known=lambda: known)) as dispatcher:  # type: ignore[arg-type]
        dispatcher.start("fill-1", owner)
        eventually(lambda: dispatcher.observe().submissions["fill-1"].status is RayStatus.ENDED, 300)


def run_one(client: Client, ray: LocalRay) -> tuple[float, str]:
    """Seconds from its submission to its success, and whom its record on Ray belongs to."""
    began = time.monotonic()
    job_id = client.submit(VICTIM)["id"]
    submission = eventually(lambda: asked(ray, f"{job_id}-1"), 120)
    eventually(lambda: client.job(job_id)["state"] == "succeeded", 300)
    return time.monotonic() - began, submission["metadata"]["syncnorm"]


@pytest.mark.chaos
def test_20000_ended_submissions_on_a_real_ray_delay_nobody(tmp_path: Path) -> None:
    """They are of this very service, which deletes them meanwhile."""
    home, around = tmp_path / "home", tmp_path / "around"
    home.mkdir()
    around.mkdir()
    with local_ray(around) as (_, ray), fake_servers() as (_, mlflow_uri):
        token = str(around / "ray.token")
        running = RunningService(
            home,
            {"SYNCNORM_RAY_ADDRESS": ray.url, "SYNCNORM_MLFLOW_URI": mlflow_uri, "RAY_AUTH_TOKEN_PATH": token},
        )
        try:
            with running.start() as client:
                run_one(client, ray)
                alone_s, owner = run_one(client, ray)
                fill(ray, owner)
                before = remembered(ray)
                crowded_s, _ = run_one(client, ray)
        finally:
            running.stop()
    print(f"\n{alone_s:.1f} s with none, {crowded_s:.1f} s with {before} records")

    assert before > MANY / 2
    assert crowded_s < max(3 * alone_s, alone_s + 10)
