"""The service as users start it, `syncnorm serve`, with everything real: Ray, MLflow, the trainer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest

from syncnorm.service.client.client import Client
from tests.helpers.paths import ROOT, SOURCE

T = TypeVar("T")
_MARK = "TESTS_OF_HOME"
"""A variable that all processes of a service inherit; the state folder is hidden from most of them."""
_PATH = os.pathsep.join(map(str, (SOURCE, ROOT / "tests" / "helpers" / "stack")))


def eventually(look: Callable[[], T | None], timeout_s: float) -> T:
    """The first true answer of `look`; fails when it does not come in time."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if answer := look():
            return answer
        time.sleep(0.2)
    pytest.fail(f"not within {timeout_s:g} s")


class Serving:
    """One `syncnorm serve` on a state folder of its own.

    program: a module in place of syncnorm. python: of another installation, which starts outside the checkout.
    settings: its environment.
    """

    def __init__(
        self, home: Path, program: str = "syncnorm.service.cli.main", *, python: Path | None = None, **settings: str
    ) -> None:
        self.home = home
        self._out = home / "out"
        environment = {key: value for key, value in os.environ.items() if not key.startswith("SYNCNORM_")}
        environment |= {"SYNCNORM_HOME": str(home), _MARK: str(home), "PYTHONPATH": _PATH, **settings}
        with self._out.open("ab") as out:
            command, folder = [python or sys.executable, "-m", program, "serve"], home if python else None
            self.process = subprocess.Popen(
                command, env=environment, cwd=folder, stdout=out, stderr=out, start_new_session=True
            )

    def url(self) -> str | None:
        address = self.home / "service.json"
        return str(json.loads(address.read_text())["url"]) if address.exists() else None

    def ready(self) -> Client | None:
        assert self.process.poll() is None, self.text()
        if (url := self.url()) is None:
            return None
        client = Client(url)
        if client.is_ready():
            return client
        client.close()
        return None

    def log(self) -> list[dict[str, Any]]:
        """What the service has said of itself so far."""
        return [json.loads(line) for line in self.text().splitlines() if line.startswith("{")]

    def text(self) -> str:
        """All that it has printed so far."""
        return self._out.read_text()

    def interrupt(self) -> int:
        """Ctrl-C, and its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        return self.process.wait(60)

    def processes(self, command: str = "") -> list[psutil.Process]:
        """Every live process started for this state folder, however, whose command line holds `command`."""
        found = []
        for process in psutil.process_iter():
            try:
                ours = process.environ().get(_MARK) == str(self.home)
                if ours and command in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.Error:  # ended meanwhile, a zombie, or not ours to read
                continue
        return found


@pytest.fixture
def own_serving(tmp_path: Path) -> Iterator[Serving]:
    """A service for one test, ended with it however the test ends."""
    running = Serving(tmp_path)
    try:
        yield running
    finally:
        running.interrupt()


@pytest.fixture(scope="session")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    running = Serving(tmp_path_factory.mktemp("home"))
    try:
        yield running
    finally:
        running.interrupt()


@pytest.fixture(scope="session")
def client(serving: Serving) -> Iterator[Client]:
    with eventually(serving.ready, 180) as found:
        yield found


def finished(client: Client, job_id: str, timeout_s: float = 280) -> dict[str, Any]:
    """The job once it is in a terminal state."""

    def look() -> dict[str, Any] | None:
        job = client.job(job_id)
        return job if job["state"] in ("succeeded", "failed", "cancelled") else None

    return eventually(look, timeout_s)
