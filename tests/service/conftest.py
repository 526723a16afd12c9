"""One real service process with a real Ray and a real MLflow for all tests here; drivers are the stand-in."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from service.client import Client
from service.embedded import free_port

T = TypeVar("T")
ROOT = Path(__file__).resolve().parent.parent.parent
STANDIN = Path(__file__).with_name("standin.py")


class RunningService:
    """The service as a process of its own, on a state folder."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Client:
        code = (
            "import sys; from service.runtime import serve; from service.settings import Settings; "
            "serve(Settings.from_environment(), lambda url, context: None, entrypoint=sys.argv[1])"
        )
        environment = {key: value for key, value in os.environ.items() if not key.startswith("SYNCNORM_")}
        environment |= {"SYNCNORM_HOME": str(self.home), "PYTHONPATH": str(ROOT), "SYNCNORM_PORT": str(free_port())}
        entrypoint = f"{shlex.quote(sys.executable)} {shlex.quote(str(STANDIN))}"
        with (self.home / "out").open("ab") as out:
            command = [sys.executable, "-c", code, entrypoint]
            self.process = subprocess.Popen(command, env=environment, stdout=out, stderr=out)
        return self.wait_until_ready()

    def wait_until_ready(self, timeout_s: float = 120) -> Client:
        address = self.home / "service.json"

        def ready() -> Client | None:
            assert self.process is not None and self.process.poll() is None, (self.home / "out").read_text()
            if not address.exists():
                return None
            client = Client(json.loads(address.read_text())["url"])
            if client.is_ready():
                return client
            client.close()
            return None

        return eventually(ready, timeout_s)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(60)


def eventually(look: Callable[[], T | None], timeout_s: float = 60) -> T:
    """The first true answer of `look`; fails when it does not come in time."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if answer := look():
            return answer
        time.sleep(0.1)
    pytest.fail(f"not within {timeout_s:g} s")


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    running = RunningService(tmp_path_factory.mktemp("home"))
    try:
        with running.start() as client:
            yield client
    finally:
        running.stop()
