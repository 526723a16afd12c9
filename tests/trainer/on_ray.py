"""Drivers as processes of their own, on a real Ray cluster."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.trainer.ranks import launch_of
from trainer.attempt import LAUNCH_FILE, RESULT_FILE, Result

ROOT = Path(__file__).resolve().parent.parent.parent


@contextmanager
def cluster() -> Iterator[str]:
    """A Ray of our own; its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}"]
    options = ["--node-ip-address=127.0.0.1", "--num-cpus=4", "--include-dashboard=false"]
    head = subprocess.Popen([*command, *options], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        head.terminate()  # it ends its processes itself, which may take a while
        head.wait(120)


def drive(ray_address: str, root: Path, job: dict[str, Any], timeout_s: float = 240) -> Result:
    """The driver of a job as a process of its own, on a real cluster; what it leaves behind."""
    (root / LAUNCH_FILE).write_text(launch_of(job).model_dump_json())
    environment = os.environ | {"RAY_ADDRESS": ray_address, "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "trainer.main", str(root)]
    done = subprocess.run(command, env=environment, timeout=timeout_s, capture_output=True, text=True, check=False)
    assert (root / RESULT_FILE).exists(), done.stderr[-3000:]
    return Result.model_validate_json((root / RESULT_FILE).read_bytes())
