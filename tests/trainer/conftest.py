from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.helpers.trainer import on_ray

os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")


class Disk:
    """A file system of its own, that can be filled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    def fill(self, *, leave_bytes: int = 0) -> None:
        """As if others had written to it, until so much is left."""
        with self._ballast.open("wb", buffering=0) as file:
            file.write(bytes(os.statvfs(self.folder).f_bavail * os.statvfs(self.folder).f_frsize - leave_bytes))

    def empty(self) -> None:
        self._ballast.unlink()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Disk]:
    """8 MiB of memory as a disk. Only root may mount it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a full disk needs a tmpfs, which can't be mounted here: {error}")
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


class Mlflow:
    """A real MLflow server on SQLite that tests may kill and start again."""

    def __init__(self, folder: Path, *, serve_artifacts: bool = True) -> None:
        self._folder = folder
        self._artifacts = ["--artifacts-destination", str(folder / "artifacts"), "--serve-artifacts"]
        if not serve_artifacts:
            self._artifacts = ["--default-artifact-root", str(folder / "artifacts"), "--no-serve-artifacts"]
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        arguments = ["--backend-store-uri", f"sqlite:///{self._folder}/mlflow.db", *self._artifacts, "--workers", "1"]
        arguments += ["--host", "127.0.0.1", "--port", str(self._port)]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *arguments],
                env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},  # five processes that only wait
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                if httpx.get(f"{self.uri}/health").is_success:
                    return
            except httpx.HTTPError:
                time.sleep(0.2)
        pytest.fail((self._folder / "log").read_text())

    def kill(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def new_run(self) -> str:
        with httpx.Client(base_url=f"{self.uri}/api/2.0/mlflow/", timeout=60) as rest:
            body = {"experiment_id": "0", "start_time": 0}
            return str(rest.post("runs/create", json=body).raise_for_status().json()["run"]["info"]["run_id"])

    def history(self, run_id: str, key: str) -> list[tuple[int, float]]:
        params = {"run_id": run_id, "metric_key": key}
        answer = httpx.get(f"{self.uri}/api/2.0/mlflow/metrics/get-history", params=params, timeout=60).json()
        return [(point["step"], point["value"]) for point in answer.get("metrics", [])]


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mlflow]:
    server = Mlflow(tmp_path_factory.mktemp("mlflow"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def ray_address() -> Iterator[str]:
    """One Ray cluster for all jobs."""
    with on_ray.cluster() as address:
        yield address
