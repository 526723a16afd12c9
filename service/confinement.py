"""Keeps the service's secrets from the processes of jobs: environment, memory and files."""

from __future__ import annotations

import ctypes
import logging
import os
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from syncnorm.service.settings import Settings

logger = logging.getLogger(__name__)

PRIVATE_UMASK = 0o077
_OF_WORKERS = "SYNCNORM_SCRATCH"
_DATABASE = ("PGPASSWORD", "PGPASSFILE", "PGSERVICEFILE")
_SERVICE_ONLY = ("SYNCNORM_", "MLFLOW_", "RAY_AUTH_", "RAY_ADDRESS", *_DATABASE)
"""Prefixes of the service's own variables: keys, tokens, passwords, and where they are."""
_OF_MLFLOW_CLIENTS = ("MLFLOW_HTTP_REQUEST_", "MLFLOW_S3_")
_MLFLOW_ACCOUNT = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
_OURS = ("service.db*", "*.token", "*.key", "*.log", "*.pids", "ray.folder", "lock", "mlflow", "storage")
"""Files of the service in its state folder."""
_PR_SET_DUMPABLE = 4


def environment_of_jobs(environ: Mapping[str, str], *, own_mlflow: bool) -> dict[str, str]:
    """The environment of processes that may run user code: ours without the service's own variables.

    own_mlflow: MLflow is embedded and needs no account; an account in the environment is for another one.
    """
    kept = (_OF_WORKERS, *_OF_MLFLOW_CLIENTS, *(() if own_mlflow else _MLFLOW_ACCOUNT))
    return {
        name: value for name, value in environ.items() if name.startswith(kept) or not name.startswith(_SERVICE_ONLY)
    }


def environment_of_mlflow(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of an MLflow server, which runs no user code."""
    return {
        name: value
        for name, value in environ.items()
        if not name.startswith(("SYNCNORM_", "RAY_", "MLFLOW_TRACKING_", *_DATABASE))
    }


def hide_memory() -> None:
    """Keep other processes of the same user from reading this one's environment and memory (Linux; root always can)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def make_private(home: Path) -> None:
    """Make all files of this process, and those in the state folder, readable for its own user only."""
    os.umask(PRIVATE_UMASK)
    home.mkdir(parents=True, exist_ok=True)
    for path in [*_shared(home), home]:
        mode = stat.S_IMODE(path.lstat().st_mode)
        if mode & stat.S_ISVTX:  # such as /tmp, which others use as well
            continue
        try:
            path.chmod(mode & ~PRIVATE_UMASK)
        except OSError as error:
            logger.warning(
                "could not make a file of the service private; other users may read it",
                extra={"path": str(path), "error": str(error)},
            )


def _shared(home: Path) -> Iterator[Path]:
    """Files of ours that others could read. A private folder was made under this rule, so everything in it was, too."""
    for path in (found for pattern in _OURS for found in home.glob(pattern)):
        if path.is_symlink() or not path.lstat().st_mode & PRIVATE_UMASK:
            continue
        if path.is_dir():
            yield from (found for found in path.rglob("*") if not found.is_symlink())
        yield path


def notes(settings: Settings, admin_file: Path) -> list[str]:
    """What an operator must know of a service with authentication, as `serve` prints it."""
    if not settings.auth:
        return []
    found = [f"The first admin's token is in {admin_file}"]
    if settings.mlflow_uri is None:
        found.append(
            "The embedded MLflow asks for no token: every user and program of this host can read and change its runs "
            "and models. If others have accounts here, set SYNCNORM_MLFLOW_URI to an MLflow with accounts, or run the "
            "composition (docker compose up)."
        )
    if settings.allow_code and settings.ray_address is None:
        found.append(
            "Jobs run as the user of this service. Anyone who may submit code can read what this user can read: the "
            "admin's token, the keys and the database. Give the scope submit only to people you trust with them, or "
            "run the composition (docker compose up), where jobs have containers of their own."
        )
    return found


def private_text(path: Path, make: Callable[[], str], *, is_given: bool) -> str:
    """The text of a file that its owner alone may read, without white space around; made if it is not there.

    is_given: an operator named the file, so nothing is made. Raises: OSError if it can't be read.
    """
    if not is_given and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as made:
            made.write(f"{make()}\n")
    return path.read_text().strip()
