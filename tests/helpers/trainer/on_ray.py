"""Drivers as processes of their own, on a real Ray cluster."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from syncnorm.trainer.contract.protocol import LAUNCH_FILE, RESULT_FILE, Launch, Result
from syncnorm.trainer.storage.storage import storage_at
from tests.helpers.paths import ROOT
from tests.helpers.trainer.ranks import launch_of

_START = (sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--node-ip-address=127.0.0.1")


@contextmanager
def cluster(cpus: int = 4) -> Iterator[str]:
    """A Ray of our own; its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with _running(*_START, "--head", f"--port={port}", f"--num-cpus={cpus}", "--include-dashboard=false"):
        yield f"127.0.0.1:{port}"


@contextmanager
def joined(ray_address: str, hidden: Path, cpus: int) -> Iterator[None]:
    """One more host, on whose file system `hidden` is another, empty folder. Only root may have such a host."""
    join = shlex.join([*_START, f"--address={ray_address}", f"--num-cpus={cpus}"])
    command = f"mount -t tmpfs tmpfs {shlex.quote(str(hidden))} && exec {join}"
    with _running("unshare", "--mount", "sh", "-c", command):
        yield


@contextmanager
def _running(*command: str) -> Iterator[None]:
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()  # it ends its processes itself, which may take a while
        process.wait(120)


def drive(ray_address: str, root: Path, job: dict[str, Any], timeout_s: float = 240) -> Result:
    """The driver of a job as a process of its own, on a real cluster; what it leaves behind."""
    return drive_at(ray_address, str(root), launch_of(job), timeout_s)


def drive_at(ray_address: str, root: str, launch: Launch, timeout_s: float = 240) -> Result:
    """root: a folder, or a URL."""
    storage_at(root).write(LAUNCH_FILE, launch.model_dump_json().encode())
    environment = os.environ | {"RAY_ADDRESS": ray_address, "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "syncnorm.trainer.driver.main", root]
    done = subprocess.run(command, env=environment, timeout=timeout_s, capture_output=True, text=True, check=False)
    assert storage_at(root).has(RESULT_FILE), done.stderr[-3000:]
    return Result.model_validate_json(storage_at(root).read(RESULT_FILE))
