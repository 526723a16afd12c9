"""A job that prints without end, and 50 followers of it, on the real embedded service: others do not notice."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from syncnorm.service.client.client import Client
from syncnorm.service.local.programs import local_mlflow, local_ray
from tests.helpers.amounts import amount
from tests.service.conftest import RunningService, eventually
from tests.service.poison.load import Watch, followers, p95, table

JOB: dict[str, Any] = {
    "name": "chatty",
    "model": {"name": "mlp"},
    "data": {"name": "digits", "batch_size": 8},
    "resources": {"workers": 1},
    "limits": {"grace_s": 5},
}
QUEUED = 200
FOLLOWERS = 50
LONGEST_S = 1.0
"""95 of 100 submits and cancels of others are answered in this time."""


def soak(running: RunningService, client: Client, chatty: dict[str, Any], seconds: float, idle_s: float) -> None:
    url = client.url
    job_id = client.submit(chatty)["id"]
    others = {**JOB, "name": "other", "priority": -1, "resources": {"workers": 2}}
    for number in range(QUEUED):
        client.submit({**others, "name": f"waits {number}"})
    idle = watch(running)
    idle.work(url, others, idle_s)
    eventually(lambda: client.job(job_id)["state"] == "running", 300)
    loud = watch(running)
    with followers(url, job_id, FOLLOWERS) as read:
        loud.work(url, others, seconds)
    print("\n" + table([("idle", idle), ("printing", loud)]))

    assert sum(bytes_read > 0 for bytes_read in read) == FOLLOWERS // 2
    assert max(p95(loud.submits_s), p95(loud.cancels_s)) < max(LONGEST_S, 2 * p95(idle.submits_s))
    assert levels_off(loud, 1, allowance_mb=20)
    assert levels_off(loud, 2, allowance_mb=2)


def watch(running: RunningService) -> Watch:
    assert running.process is not None
    return Watch(running.home, running.process.pid)


def levels_off(seen: Watch, column: int, allowance_mb: float) -> bool:
    first, second = seen.growth(column)
    return second <= max(allowance_mb, first / 2)


@pytest.mark.chaos
def test_print_without_end_is_noticed_by_nobody(tmp_path: Path) -> None:
    """The ranks are threads of one process with the trainer's own reporters; all else is real."""
    running = RunningService(tmp_path, driver=Path(__file__).with_name("printing.py"))
    try:
        with running.start() as client:
            soak(running, client, {**JOB, "labels": {"ranks": "8"}}, seconds=24, idle_s=4)
    finally:
        running.stop()


@pytest.mark.chaos
def test_print_without_end_is_noticed_by_nobody_long(tmp_path: Path) -> None:
    """Eight real ranks with code of a user, on a Ray that is told of more CPUs than the host has. It starts a driver
    as `python`, which must be this one."""
    chatty = {
        **JOB,
        "model": {"class_path": "tests.service.poison.chatty_model.Chatty"},
        "train": {"epochs": 10**6, "checkpoint_every": {"epochs": 10**5}},
        "resources": {"workers": 8},
    }
    home, around = tmp_path / "home", tmp_path / "around"
    home.mkdir()
    with (
        mock.patch.object(os, "cpu_count", return_value=9),
        mock.patch.dict(os.environ, PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"),
        local_ray(around) as (_, ray),
        local_mlflow(around, preferred_port=0) as (_, mlflow_uri),
    ):
        places = {
            "SYNCNORM_RAY_ADDRESS": ray.url,
            "SYNCNORM_MLFLOW_URI": mlflow_uri,
            "RAY_AUTH_TOKEN_PATH": str(around / "ray.token"),
            "SYNCNORM_LOG_MB_PER_JOB": "5",  # full in the first half, so that the second one shows a level database
        }
        running = RunningService(home, places, trains=True)
        try:
            with running.start() as client:
                soak(running, client, chatty, seconds=amount(600), idle_s=20)
        finally:
            running.stop()
