"""A composition of real containers under a project name, ports and secrets of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import httpx

from syncnorm.service.client.client import Client
from syncnorm.service.local.free_ports import free_port
from tests.helpers.paths import ROOT

T = TypeVar("T")
PROJECT = "syncnorm-test"
IMAGE_USER = 10001
JOINED = ("-p", f"{PROJECT}-host", "-f", "deploy/worker-host.yml")


class Composition:
    """docker-compose.yml as a user starts it; everything of it is gone after `remove`."""

    def __init__(self, folder: Path, project: str = PROJECT, settings: dict[str, str] | None = None) -> None:
        self.project = project
        self.secrets = folder / "secrets"
        self.ports = {"api": free_port(), "mlflow": free_port()}
        self.environment = {
            **os.environ,
            "COMPOSE_PROJECT_NAME": project,
            "SYNCNORM_SECRETS": str(self.secrets),
            "SYNCNORM_UID": str(os.getuid() or IMAGE_USER),
            "SYNCNORM_API_PORT": str(self.ports["api"]),
            "SYNCNORM_MLFLOW_PORT": str(self.ports["mlflow"]),
            **(settings or {}),
        }

    def make_secrets(self) -> None:
        self.run(str(ROOT / "deploy" / "init-secrets"))

    def compose(self, *arguments: str, timeout_s: float = 300, check: bool = True) -> str:
        return self.run(str(ROOT / "deploy" / "compose"), *arguments, timeout_s=timeout_s, check=check)

    def run(self, *command: str, timeout_s: float = 300, check: bool = True) -> str:
        """Standard output of a command. Fails with what it wrote."""
        done = subprocess.run(
            command, env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, check=False
        )
        if check and done.returncode != 0:
            raise AssertionError(
                f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
            )
        return done.stdout

    def up(self) -> None:
        self.compose("up", "-d", timeout_s=300)

    def join(self) -> None:
        """Join one more worker as another host does, with deploy/worker-host.yml and the same storage."""
        device = docker("volume", "inspect", "--format={{.Mountpoint}}", f"{self.project}_storage").strip()
        self.environment |= {
            "SYNCNORM_NETWORK": f"{self.project}_cluster",
            "SYNCNORM_STORAGE_TYPE": "none",
            "SYNCNORM_STORAGE_OPTIONS": "bind",
            "SYNCNORM_STORAGE_DEVICE": device,
        }
        self.compose(*JOINED, "up", "-d")

    def leave(self) -> None:
        if "SYNCNORM_NETWORK" in self.environment:
            self.compose(*JOINED, "down", "--volumes", "--timeout", "2", check=False)
            del self.environment["SYNCNORM_NETWORK"]

    def workers(self) -> list[str]:
        """Ids of the running worker containers, of this host and of the one that joined."""
        here = self.containers("ray-worker")
        joined = self.compose(*JOINED, "ps", "-q").split() if "SYNCNORM_NETWORK" in self.environment else []
        return here + joined

    def remove(self) -> None:
        self.leave()
        self.compose("down", "--volumes", "--timeout", "10", check=False)

    def secret(self, name: str) -> str:
        return (self.secrets / name).read_text().strip()

    def client(self) -> Client:
        return Client(f"http://127.0.0.1:{self.ports['api']}", self.secret("api_admin_token"))

    def mlflow(self, account: str = "syncnorm", password: str = "mlflow_service_password") -> httpx.Client:
        url = f"http://127.0.0.1:{self.ports['mlflow']}"
        return httpx.Client(base_url=url, auth=(account, self.secret(password)), trust_env=False, timeout=30)

    def wait_until_ready(self, timeout_s: float = 240) -> None:
        with self.client() as client:
            eventually(client.is_ready, timeout_s, lambda: self.compose("logs", "--tail=40", check=False))

    def wait_for_workers(self, cpus: int = 2, timeout_s: float = 240) -> None:
        """A job that asks for more than there is would be refused, and a worker on a busy host joins late."""
        with self.client() as client:
            eventually(lambda: sum(node["cpus"] for node in client.cluster()["nodes"]) >= cpus, timeout_s)

    def containers(self, service: str) -> list[str]:
        """Ids of the running containers of a service."""
        return self.compose("ps", "-q", service).split()

    def execute(self, service: str, *command: str, check: bool = True, timeout_s: float = 120) -> str:
        return self.compose("exec", "-T", service, *command, check=check, timeout_s=timeout_s)

    def sql(self, database: str, query: str) -> list[str]:
        rows = self.execute("postgres", "psql", "-U", "postgres", "-d", database, "-Atc", query)
        return rows.splitlines()


def docker(*arguments: str, check: bool = True) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False, timeout=120)
    assert not check or done.returncode == 0, done.stderr
    return done.stdout


def inspect(container: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(docker("inspect", container))[0]
    return found


def why_no_engine() -> str | None:
    """Why containers can't be run here; None if they can."""
    if shutil.which("docker") is None:
        return "no docker command"
    try:
        answered = subprocess.run(["docker", "info"], capture_output=True, timeout=20, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        answered = False
    return None if answered else "no Docker engine answers"


def eventually(look: Callable[[], T | None], timeout_s: float, tell: Callable[[], str] = str) -> T:
    """The first true answer of `look`; fails with what `tell` says when it does not come in time."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if answer := look():
            return answer
        time.sleep(0.5)
    raise AssertionError(f"not within {timeout_s:g} s. {tell()}")
