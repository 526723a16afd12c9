"""The embedded Ray and MLflow, which start and end with the service."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from syncnorm.import_path import python_path
from syncnorm.service.confinement import PRIVATE_UMASK, environment_of_jobs, environment_of_mlflow
from syncnorm.service.integrations.ray_jobs import ENTRYPOINTS, Entrypoints
from syncnorm.service.local.free_ports import claimed_port, free_port
from syncnorm.service.local.supervisor import sweep
from syncnorm.trainer.forkserver.launcher import FOLDER, LAUNCHER

logger = logging.getLogger(__name__)

_MAX_DRIVERS = 64
_STOP_S = 20.0
_FOLDER_FILE, _PREFIX = "ray.folder", "sn-"
"""The file that names the private folder around Ray's own, and the pattern of such folders."""
_OF_RAY = "ray"
"""Ray's own folder in it. Ray lets every user of the host write there (2.60), so the one around it must not."""
_TEMP_PATH_LIMIT = 24
"""A Unix socket path ends at 107. Ray's sockets add up to 67 characters to its folder, and that has 16 of ours."""


@dataclass(frozen=True)
class Command:
    arguments: list[str]
    environment: Mapping[str, str]


class Program:
    """A program under a supervisor, restarted when it dies."""

    def __init__(self, name: str, folder: Path, command: Callable[[], Command]) -> None:
        """command: called at each start, so that a restart may take fresh ports."""
        self.name = name
        self._record = folder / f"{name}.pids"
        self._log = folder / f"{name}.log"
        self._command = command
        self._supervisor: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        sweep(self._record)
        command = self._command()
        self._supervisor = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "syncnorm.service.local.supervisor",
                str(self._record),
                str(self._log),
                *command.arguments,
            ],
            stdin=subprocess.PIPE,
            env=dict(command.environment),
            start_new_session=True,
            umask=PRIVATE_UMASK,
        )

    def ensure(self) -> None:
        """Restart it if it has died."""
        if self._supervisor is not None and self._supervisor.poll() is not None:
            logger.warning(
                "an embedded program died; restarting it", extra={"program": self.name, "log": str(self._log)}
            )
            self.release()
            self.start()

    def release(self) -> None:
        """Ask it to end, without waiting."""
        if self._supervisor is not None and self._supervisor.stdin is not None:
            with contextlib.suppress(OSError):
                self._supervisor.stdin.close()

    def stop(self) -> None:
        """End it, and wait until none of its processes is left."""
        if self._supervisor is None:
            return
        self.release()
        supervisor, self._supervisor = self._supervisor, None
        try:
            supervisor.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            supervisor.kill()
            supervisor.wait()
            sweep(self._record)


@dataclass(frozen=True)
class LocalRay:
    """Addresses of the embedded Ray."""

    url: str
    token: str
    entrypoints: Entrypoints
    warm: Path | None = None
    """The folder of the parent that drivers and workers of ours are forked from; None: they start anew."""


@contextlib.contextmanager
def local_ray(home: Path, *, own_mlflow: bool = True, warm: bool = False) -> Iterator[tuple[Program, LocalRay]]:
    """A Ray head on this host, reachable with a token of our own only. own_mlflow: see `environment_of_jobs`. warm:
    whether drivers and workers are forked from a parent, see docs/explanation/warm-start.md."""
    token_file = home / "ray.token"
    token = _write_token(token_file)
    _remove_left(home / _FOLDER_FILE)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_short_temp()))
    (home / _FOLDER_FILE).write_text(str(folder))
    of_parent = _folder_of_parent(folder) if warm else None

    variables = {FOLDER: str(of_parent)} if of_parent else {}

    def command() -> Command:
        return Command(
            _ray_arguments(folder / _OF_RAY, dashboard), _ray_environment(token_file, own_mlflow) | variables
        )

    python = f"{shlex.quote(sys.executable)} -m{f' {LAUNCHER}' if warm else ''}"
    entrypoints: Entrypoints = {kind: command.replace("python -m", python, 1) for kind, command in ENTRYPOINTS.items()}
    program = Program("ray", home, command)
    with claimed_port() as dashboard:
        try:
            program.start()
            yield program, LocalRay(f"http://127.0.0.1:{dashboard}", token, entrypoints, of_parent)
        finally:
            program.stop()
            _remove_left(home / _FOLDER_FILE)


def _folder_of_parent(around: Path) -> Path:
    """Where processes of Ray find their parent. It ends when the folder goes."""
    folder = around / "warm"
    folder.mkdir(mode=0o700)
    return folder


def _remove_left(record: Path) -> None:
    """Delete the folder of a Ray: our own, or that of a service that was killed before it could."""
    if record.exists() and (folder := Path(record.read_text())).name.startswith(_PREFIX):
        shutil.rmtree(folder, ignore_errors=True)
    record.unlink(missing_ok=True)


@contextlib.contextmanager
def local_mlflow(
    home: Path, preferred_port: int = 5000, public_url: str | None = None
) -> Iterator[tuple[Program, str]]:
    """An MLflow server on SQLite; its URI. One worker process is plenty for one host.

    public_url: where browsers reach it, if by another name.
    """
    folder = home / "mlflow"
    folder.mkdir(parents=True, exist_ok=True)

    def command() -> Command:
        arguments = [
            *(
                sys.executable,
                "-m",
                "syncnorm.service.local.mlflow_server",
                "server",
                "--host",
                "127.0.0.1",
                "--port",
                str(port),
            ),
            *("--workers", "1", "--serve-artifacts"),
            *("--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"),
            *("--artifacts-destination", str(folder / "artifacts")),
        ]
        extra = {
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            # The default also lets names through that only look like private addresses (mlflow 3.17).
            "MLFLOW_SERVER_ALLOWED_HOSTS": f"127.0.0.1:{port},localhost:{port}",
            "SYNCNORM_MLFLOW_PUBLIC_URL": public_url or "",
        }
        return Command(arguments, python_path(environment_of_mlflow(os.environ)) | extra)

    program = Program("mlflow", home, command)
    with claimed_port(preferred_port) as port:
        try:
            program.start()
            yield program, f"http://127.0.0.1:{port}"
        finally:
            program.stop()


@contextlib.contextmanager
def supervised(programs: list[Program], every_s: float = 1.0) -> Iterator[None]:
    """Restart dead programs, until the end of the block."""
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(every_s):
            for program in programs:
                program.ensure()

    thread = threading.Thread(target=watch, name="supervisor")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        for program in programs:
            program.release()


def _ray_arguments(folder: Path, dashboard: int) -> list[str]:
    ports = {
        "port": free_port(),
        "dashboard-agent-listen-port": free_port(),
        "dashboard-agent-grpc-port": free_port(),
        "metrics-export-port": free_port(),
        "min-worker-port": 0,
        "max-worker-port": 0,
    }
    return [
        *(sys.executable, "-m", "syncnorm.service.local.ray_head"),
        *("start", "--head", "--block", "--disable-usage-stats"),
        *("--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
        *(f"--num-cpus={max(2, os.cpu_count() or 1)}", f'--resources={{"syncnorm_driver": {_MAX_DRIVERS}}}'),
        *(f"--object-store-memory={256 * 2**20}", f"--temp-dir={folder}"),
        *(f"--{name}={value}" for name, value in ports.items()),
    ]


def _ray_environment(token_file: Path, own_mlflow: bool) -> dict[str, str]:
    return python_path(environment_of_jobs(os.environ, own_mlflow=own_mlflow)) | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_file),
        # Without this Ray replaces 127.0.0.1 by an interface's address, and its servers listen on all (ray 2.60).
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        # How old Ray's report of free capacity may be; the default of 5 s would delay the next job.
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        # Without this Ray serves its metrics without the token. Two servers have no switch (ray 2.60).
        "RAY_enable_metrics_collection": "0",
        "AUTOSCALER_METRIC_PORT": "-1",
        "DASHBOARD_METRIC_PORT": "-1",
    }


def _write_token(path: Path) -> str:
    """Ray's own generated file is readable by everybody (ray 2.60)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    token = secrets.token_hex(32)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(token)
    return token


def _short_temp() -> str:
    usual = tempfile.gettempdir()
    return usual if len(usual) <= _TEMP_PATH_LIMIT else "/tmp"
