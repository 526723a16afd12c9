"""What the processes of a job can't find out about the service, and what they can: environment, memory, files."""

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
"""How the names begin of what is the service's own: keys, tokens, passwords, and where they lie."""
_OF_MLFLOW_CLIENTS = ("MLFLOW_HTTP_REQUEST_", "MLFLOW_S3_")
_MLFLOW_ACCOUNT = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
_OURS = ("service.db*", "*.token", "*.key", "*.log", "*.pids", "ray.folder", "lock", "mlflow", "storage")
"""What this program puts into its state folder."""
_PR_SET_DUMPABLE = 4


def environment_of_jobs(environ: Mapping[str, str], *, own_mlflow: bool) -> dict[str, str]:
    """The environment of everything that may run a user's code: all of ours but what concerns the service alone.

    own_mlflow: the service has its own MLflow, which asks for no account; an account in the environment is for another.
    """
    kept = (_OF_WORKERS, *_OF_MLFLOW_CLIENTS, *(() if own_mlflow else _MLFLOW_ACCOUNT))
    return {
        name: value for name, value in environ.items() if name.startswith(kept) or not name.startswith(_SERVICE_ONLY)
    }


def environment_of_mlflow(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of an MLflow server, which runs nobody's code."""
    return {
        name: value
        for name, value in environ.items()
        if not name.startswith(("SYNCNORM_", "RAY_", "MLFLOW_TRACKING_", *_DATABASE))
    }


def hide_memory() -> None:
    """Processes of the same user can't read this one's environment and memory any more (Linux; root always can)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def make_private(home: Path) -> None:
    """From here on this process makes files for its own user only, and those of the state folder become so."""
    os.umask(PRIVATE_UMASK)
    home.mkdir(parents=True, exist_ok=True)
    for path in [*_shared(home), home]:
        mode = stat.S_IMODE(path.lstat().st_mode)
        if mode & stat.S_ISVTX:  # such as /tmp: not ours alone
            continue
        try:
            path.chmod(mode & ~PRIVATE_UMASK)
        except OSError as error:
            logger.warning("other users may read a file of the service", extra={"path": str(path), "error": str(error)})


def _shared(home: Path) -> Iterator[Path]:
    """What of ours others could read. A folder that is private was made after this rule, and so was all within."""
    for path in (found for pattern in _OURS for found in home.glob(pattern)):
        if path.is_symlink() or not path.lstat().st_mode & PRIVATE_UMASK:
            continue
        if path.is_dir():
            yield from (found for found in path.rglob("*") if not found.is_symlink())
        yield path


def notes(settings: Settings, admin_file: Path) -> list[str]:
    """What an operator has to know of a service with authentication, as `serve` prints it."""
    if not settings.auth:
        return []
    found = [f"The token of the first admin is in {admin_file}"]
    if settings.allow_code and settings.ray_address is None:
        found.append(
            "Jobs run as the user of this service. Whoever may submit code can read all that this user can: the token "
            "of the admin, the keys and the database. Let only those submit whom you trust with them, or run the "
            "composition (docker compose up), where jobs are in containers of their own."
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
