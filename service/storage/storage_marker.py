"""Tells a storage that isn't mounted from an empty one, by a file with the id of this installation at its root."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from syncnorm.service.store.administration.installation import InstallationTable
from syncnorm.trainer.errors import StorageError
from syncnorm.trainer.storage.storage import is_url, storage_at

logger = logging.getLogger(__name__)

MARKER = "syncnorm-storage.json"
_REST_S = 5.0
"""Seconds for which a storage under a URL is not checked again: a check costs a request."""
_ABOUT = "syncnorm finds by this file that its storage is mounted. Keep it."


class StorageMarker:
    """The marker is written once: at the first start, and to a storage in use that has none yet.

    From then on a storage without it counts as unavailable: nothing is created there, and a missing file proves
    nothing.
    """

    def __init__(self, installation: InstallationTable, root: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._facts = installation
        self._root = root
        self._clock = clock
        self._installation: str | None = None
        self._is_marked = False
        self._good_until = 0.0

    def check(self) -> None:
        """Raises: StorageError unless this is the storage of this installation. Marks it if it is new."""
        if is_url(self._root) and self._clock() < self._good_until:
            return
        if self._installation is None:
            self._installation = self._facts.id()
        found = self._read()
        if found is None:
            self._mark_if_new(self._installation)
        elif found != self._installation:
            raise StorageError(
                f"the storage {self._root} belongs to another installation ({found}; this one is "
                f"{self._installation}). Mount the right one, or remove its {MARKER} to use it with this database."
            )
        elif not self._is_marked:
            self._facts.note_storage(self._root)
        self._is_marked, self._good_until = True, self._clock() + _REST_S

    def _read(self) -> str | None:
        """The installation in the marker; None without a marker. An unreadable marker belongs to no installation."""
        try:
            content = storage_at(self._root).read(MARKER)
        except FileNotFoundError:
            return None
        try:
            return str(json.loads(content)["installation"])
        except (ValueError, TypeError, KeyError):
            return "unreadable marker"

    def _mark_if_new(self, installation: str) -> None:
        if self._is_marked or self._facts.has_storage(self._root) or not self._is_ours_or_new():
            marker = json.dumps({"installation": installation})
            raise StorageError(
                f"the storage {self._root} is not mounted: it has no {MARKER}. Mount it. If it is the right one and "
                f"lost the file, write {marker} to it."
            )
        content = json.dumps({"installation": installation, "about": _ABOUT}, indent=1)
        storage_at(self._root).write(MARKER, content.encode())
        self._facts.note_storage(self._root)
        logger.info("wrote the marker of this installation to the storage", extra={"storage": self._root})

    def _is_ours_or_new(self) -> bool:
        """A folder without a marker is ours or new if none of our files can be missing from it, or some are seen."""
        if is_url(self._root) or not self._facts.has_attempts() or self._facts.has_other_storage(self._root):
            return True
        try:
            with os.scandir(Path(self._root) / "jobs") as jobs:
                return next(jobs, None) is not None
        except OSError:
            return False
