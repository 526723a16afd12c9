"""A real Ray of two hosts, one of which can be cut off, and a real MLflow that both reach."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from syncnorm.service.integrations.ray_jobs import DRIVER_RESOURCE
from syncnorm.service.local.free_ports import free_port
from syncnorm.service.local.programs import Command, Program
from tests.helpers.service.namespaces import CutHost
from tests.service.conftest import ROOT, eventually

HEALTH_CHECK_S = 1.0
"""Ray gives a host up after three of them: some seconds instead of a minute."""
_RAY = ("-c", "from ray.scripts.scripts import main; main()", "start", "--block", "--disable-usage-stats")
_STOREHOUSE = f"--object-store-memory={128 * 2**20}"
_DRIVERS = 4
_NEAR_CPUS, _FAR_CPUS = 2, 1


@dataclass(frozen=True)
class TwoHosts:
    """url: of Ray's dashboard, on the near host."""

    far: CutHost
    url: str
    mlflow_uri: str
    token_file: Path
    far_ray: Program

    def restart_far_ray(self) -> None:
        """After a cut: what has given itself up does not come back."""
        self.far_ray.stop()
        eventually(lambda: self.hosts() == 1)
        self.far_ray.start()
        eventually(lambda: self.hosts() == 2)

    @contextmanager
    def busy_near_host(self) -> Iterator[None]:
        """Within, somebody else uses all but one CPU of the near host and every place of a driver there."""
        name = f"busy-{os.urandom(4).hex()}"
        body = {
            "entrypoint": "sleep 1000",
            "submission_id": name,
            "entrypoint_num_cpus": _NEAR_CPUS - 1,
            "entrypoint_resources": {DRIVER_RESOURCE: _DRIVERS, "near": 1},
        }
        with self.dashboard() as ray:
            ray.post("/api/jobs/", json=body).raise_for_status()
            eventually(lambda: ray.get(f"/api/jobs/{name}").json()["status"] == "RUNNING")
            yield
            ray.post(f"/api/jobs/{name}/stop").raise_for_status()

    def dashboard(self) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.token_file.read_text()}"}
        return httpx.Client(base_url=self.url, headers=headers, trust_env=False, timeout=30)

    def hosts(self) -> int:
        """How many Ray says it has."""
        with self.dashboard() as ray:
            status = ray.get("/api/cluster_status").json()["data"]["clusterStatus"]
        return len(status["loadMetricsReport"]["usageByNode"])


@contextmanager
def two_hosts(home: Path, far: CutHost) -> Iterator[TwoHosts]:
    token = home / "ray.token"
    token.write_text(os.urandom(32).hex())
    folder = Path(tempfile.mkdtemp(prefix="sn-", dir="/tmp"))  # Ray's sockets need a short path
    gcs, dashboard, mlflow = free_port(), free_port(), free_port()
    environment = _environment(token)

    def near() -> Command:
        where = (f"--node-ip-address={far.gateway}", f"--dashboard-host={far.gateway}", f"--temp-dir={folder}")
        resources = f'--resources={{"{DRIVER_RESOURCE}": {_DRIVERS}, "near": 1}}'
        ports = (f"--port={gcs}", f"--dashboard-port={dashboard}", *_ports())
        return Command(
            [sys.executable, *_RAY, "--head", *where, *ports, f"--num-cpus={_NEAR_CPUS}", resources, _STOREHOUSE],
            environment,
        )

    def apart() -> Command:
        where = (f"--address={far.gateway}:{gcs}", f"--node-ip-address={far.address}")
        resources = f'--resources={{"{DRIVER_RESOURCE}": {_DRIVERS}}}'
        ray = (sys.executable, *_RAY, *where, f"--num-cpus={_FAR_CPUS}", resources, _STOREHOUSE)
        return Command([*far.apart(folder), *ray], environment)

    def tracking() -> Command:
        return Command([sys.executable, "-m", "mlflow", *_mlflow(home / "mlflow", far.gateway, mlflow)], environment)

    programs = [Program("near", home, near), Program("far", home, apart), Program("mlflow", home, tracking)]
    made = TwoHosts(far, f"http://{far.gateway}:{dashboard}", f"http://{far.gateway}:{mlflow}", token, programs[1])
    try:
        for program in programs:  # the far host asks for the head until it is there
            program.start()
        eventually(lambda: _answers(f"{made.mlflow_uri}/health"))
        eventually(lambda: _answers(f"{made.url}/api/version"))
        eventually(lambda: made.hosts() == 2)
        yield made
    finally:
        for program in programs:
            program.release()
        for program in programs:
            program.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False, timeout=2).status_code != httpx.codes.SERVICE_UNAVAILABLE
    except httpx.HTTPError:
        return False


def _ports() -> list[str]:
    names = ("dashboard-agent-listen-port", "dashboard-agent-grpc-port", "metrics-export-port")
    return [*(f"--{name}={free_port()}" for name in names), "--min-worker-port=0", "--max-worker-port=0"]


def _mlflow(folder: Path, host: str, port: int) -> list[str]:
    folder.mkdir()
    return [
        *("server", "--host", host, "--port", str(port), "--workers", "1", "--serve-artifacts"),
        *("--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"),
        *("--artifacts-destination", str(folder / "artifacts"), "--allowed-hosts", f"{host}:{port}"),
    ]


def _environment(token: Path) -> dict[str, str]:
    mine = {key: value for key, value in os.environ.items() if not key.startswith(("SYNCNORM_", "RAY_", "MLFLOW_"))}
    return mine | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_health_check_initial_delay_ms": "1000",
        "RAY_health_check_period_ms": str(round(1000 * HEALTH_CHECK_S)),
        "RAY_health_check_timeout_ms": str(round(1000 * HEALTH_CHECK_S)),
        "RAY_health_check_failure_threshold": "3",
    }
