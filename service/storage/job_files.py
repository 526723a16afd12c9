"""The files that a job has published, by the paths under which users know them, on a folder or any fsspec URL.

| path | where it lies in the job's folder |
|---|---|
| `export/…` | the export folder of its last attempt, once the job is over |
| `exports/{n}/…` | that of the last start of a later export, once it is over |
| `checkpoints/{step}/…` | a complete checkpoint |
| anything else, such as `spec.yaml` | the artifacts of its attempts; those of later ones count |

Launch files, which hold tokens, uploaded code and logs are not among them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from syncnorm.service.jobs.exports.export import Export, ExportState
from syncnorm.service.jobs.job import Job
from syncnorm.service.store import StoredCheckpoint
from syncnorm.trainer.contract.protocol import attempt_folder, export_folder
from syncnorm.trainer.storage.entries import Entry
from syncnorm.trainer.storage.storage import storage_at

_RESERVED = ("export", "exports", "checkpoints")
_RECORDS = ("manifest.json", "model.json", "certificate.json")
"""Files that name the digests of those beside them."""
_SMALL = 2**20
"""Files that are read for their digest as soon as records would be."""
_MOST_RECORDED = 8 * 2**20
_MOST_REMEMBERED = 20_000


@dataclass(frozen=True)
class Section:
    """Files below `folder` have the path `prefix` and then their name. listed: the folder that is listed for them."""

    prefix: str
    folder: str
    listed: str

    def path_of(self, name: str) -> str:
        below = name.removeprefix(f"{self.folder}/")
        return f"{self.prefix}/{below}" if self.prefix else below


@dataclass(frozen=True)
class JobFile:
    """path: as users know it. entry: where it is on the storage."""

    path: str
    entry: Entry


def sections(job: Job, checkpoints: Sequence[StoredCheckpoint], exports: Sequence[Export]) -> list[Section]:
    """Where the files of a job lie, those of later attempts first."""
    found = [_section("", f"{_attempt(job, number)}/artifacts") for number in range(job.attempt, 0, -1)]
    if job.is_terminal and job.attempt:
        found.append(_section("export", f"{_attempt(job, job.attempt)}/export"))
    for export in exports:
        if export.state in (ExportState.SUCCEEDED, ExportState.FAILED):
            folder = export_folder("", job.id, export.name, export.starts).lstrip("/")
            found.append(_section(f"exports/{export.name}", f"{folder}/export"))
    for one in sorted(checkpoints, key=lambda one: one.attempt, reverse=True):
        listed = f"{_attempt(job, one.attempt)}/checkpoints"
        found.append(Section(f"checkpoints/{one.step}", f"{listed}/step-{one.step:010d}", listed))
    return found


def _section(prefix: str, folder: str) -> Section:
    return Section(prefix, folder, folder)


def _attempt(job: Job, number: int) -> str:
    return attempt_folder("", job.id, number).lstrip("/")


class JobFiles:
    """root: the storage of the service. Methods raise StorageError while it is unavailable."""

    def __init__(self, root: str, check: Callable[[], None] = lambda: None) -> None:
        """check: raises StorageError if the storage is not mounted."""
        self._root = root
        self._check = check

    def all(self, places: Sequence[Section]) -> list[JobFile]:
        """Every file, sorted by path."""
        self._check()
        storage, found = storage_at(self._root), dict[str, JobFile]()
        listings = {folder: storage.entries(folder) for folder in dict.fromkeys(place.listed for place in places)}
        for place in places:
            for entry in listings[place.listed]:
                path = place.path_of(entry.name)
                if entry.name.startswith(f"{place.folder}/") and _is_named(place, path):
                    found.setdefault(path, JobFile(path, entry))
        return [found[path] for path in sorted(found)]

    def find(self, places: Sequence[Section], path: str) -> JobFile | None:
        """The file of this path, if there is one."""
        self._check()
        for place in places:
            below = path.removeprefix(f"{place.prefix}/") if place.prefix else path
            if (place.prefix and below == path) or not _is_named(place, path):
                continue
            try:
                return JobFile(path, storage_at(self._root).entry(f"{place.folder}/{below}"))
            except FileNotFoundError:
                continue
        return None

    def digest(self, file: JobFile) -> str:
        """SHA-256 in hex: of a large file as it was recorded when it was written, if it was."""
        return _digest(self._root, file.entry)

    def pieces(self, file: JobFile, start: int, end: int) -> Iterator[bytes]:
        """The bytes from `start` up to `end`. Raises: FileNotFoundError if it was deleted meanwhile."""
        return storage_at(self._root).pieces(file.entry.name, start, end)


def _is_named(place: Section, path: str) -> bool:
    """Whether a file may have this path: a name that is plain text, and none of the other sections'."""
    parts = path.split("/")
    is_plain = path.isprintable() and not any(part in ("", ".", "..") or part.startswith(".tmp-") for part in parts)
    return is_plain and "\\" not in path and (bool(place.prefix) or parts[0] not in _RESERVED)


@lru_cache(_MOST_REMEMBERED)
def _digest(root: str, entry: Entry) -> str:
    """Remembered: an entry of another version is another one."""
    if entry.size_bytes > _SMALL:
        folder, _, name = entry.name.rpartition("/")
        for record in _RECORDS:
            if (known := _recorded(root, f"{folder}/{record}", name)) is not None:
                return known
    made = hashlib.sha256()
    for piece in storage_at(root).pieces(entry.name, 0, entry.size_bytes):
        made.update(piece)
    return made.hexdigest()


def _recorded(root: str, record: str, name: str) -> str | None:
    """The digest of the file `name` in one of _RECORDS, whatever else that holds."""
    storage = storage_at(root)
    try:
        size = storage.entry(record).size_bytes
        content: Any = json.loads(b"".join(storage.pieces(record, 0, size))) if size <= _MOST_RECORDED else None
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    if not isinstance(content, dict):
        return None
    of_model = {f"{kind}.safetensors": content.get(kind) for kind in ("weights", "plain")}
    files = content.get("files", of_model)
    found = files.get(name) if isinstance(files, dict) else None
    if isinstance(found, dict):
        found = found.get("sha256")
    return found if isinstance(found, str) and _is_digest(found) else None


def _is_digest(text: str) -> bool:
    return len(text) == 64 and set(text) <= set("0123456789abcdef")
