"""Folders on this host's disk for as long as a process works in them."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

logger = logging.getLogger(__name__)

_PREFIX = "syncnorm-scratch-"
_LOCK = ".lock"


@contextmanager
def scratch() -> Iterator[Path]:
    """An empty folder, readable by its owner only, in SYNCNORM_SCRATCH or the temporary folder; deleted at the end.

    A process that is killed can't delete its own. The next one on the host does, because the lock is released with its
    holder.
    """
    _remove_left()
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_folder()))
        lock = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
        if _take(lock):
            break
        os.close(lock)  # another process mistook it for a leftover, between the two lines above
    try:
        yield folder / "files"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _remove_left() -> None:
    for folder in _folder().glob(f"{_PREFIX}*"):
        with suppress(OSError):  # another user's, or deleted meanwhile
            lock = os.open(folder / _LOCK, os.O_RDWR)
            try:
                if _take(lock):
                    logger.info("deleting scratch files that a killed process left behind: %s", folder)
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


def _folder() -> Path:
    return Path(os.environ.get("SYNCNORM_SCRATCH") or tempfile.gettempdir())  # not TMPDIR: Ray moves with that


def _take(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
