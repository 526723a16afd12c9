"""Downloads a file of a job: continues a broken download, checks the digest, and puts the whole file in place."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

import httpx

from syncnorm.service.client.addresses import api_path
from syncnorm.service.client.client_errors import ClientError, DamagedFileError, UsageError
from syncnorm.service.client.connection import Connection, RetryPeriod

OnProgress = Callable[[int, int], None]
"""Called with the bytes that are there, and the size of the file."""
_MOST_TRIES = 3
"""Of a file that arrives damaged, or changes meanwhile, as records of a running job do."""


class _ChangedError(ClientError):
    """The service has another version of the file by now."""


@dataclass(frozen=True)
class RemoteFile:
    """A file of a job. digest: SHA-256 in hex."""

    address: str
    size_bytes: int
    digest: str


def file_address(job_id: str, path: str) -> str:
    """Address of a file of a job. Raises: UsageError for a path that could lead to another resource."""
    parts = path.split("/") if isinstance(path, str) else []
    if not parts or any(part in ("", ".", "..") for part in parts) or not path.isprintable() or "\\" in path:
        raise UsageError(f"The path of a file must be one that `syncnorm files` lists, got {path!r}.")
    return f"{api_path('jobs', job_id, 'files')}/{quote(path, safe='/')}"


def place_for(path: str, to: str | os.PathLike[str]) -> Path:
    """Where a file goes: `to`, or below it where that is a folder or ends with a slash."""
    is_folder = Path(to).is_dir() or str(to).endswith(("/", os.sep))
    return Path(to) / path.rpartition("/")[2] if is_folder else Path(to)


def fetch(
    connection: Connection, locate: Callable[[], RemoteFile], target: Path, on_progress: OnProgress | None = None
) -> Path:
    """Have the file that `locate` describes at `target`, which holds all of it or what it held before.

    A download that breaks is continued while the service can be reached again, and by the next call.

    Raises: DamagedFileError if it doesn't have its digest; ClientError; OSError.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    tell = on_progress or (lambda _done, _size: None)
    for _ in range(_MOST_TRIES):
        file = locate()
        if target.is_file() and _digest(target) == file.digest:
            tell(file.size_bytes, file.size_bytes)
            return target
        # Named by its content: what was left of another version is not continued.
        partial = target.with_name(f".{target.name}.{file.digest[:16]}.part")
        try:
            _receive_all(connection, file, partial, tell)
        except _ChangedError:
            partial.unlink(missing_ok=True)
            continue
        if _digest(partial) == file.digest:
            partial.replace(target)
            return target
        partial.unlink()
    raise DamagedFileError(
        f"{target.name} must arrive with the SHA-256 that the service names, {file.digest}, but it did not in "
        f"{_MOST_TRIES} tries: the file on the storage is damaged, or it changes all the time. Nothing was kept."
    )


def _receive_all(connection: Connection, file: RemoteFile, partial: Path, tell: OnProgress) -> None:
    patience = RetryPeriod(connection)
    while (there := _size(partial)) != file.size_bytes or not partial.exists():
        try:
            _receive(connection, file, partial, tell)
        except _ChangedError:
            raise
        except ClientError as error:
            if _size(partial) > there:
                patience.renew()
            patience.wait(error)


def _receive(connection: Connection, file: RemoteFile, partial: Path, tell: OnProgress) -> None:
    """Receive what is missing, or all of it."""
    there = _size(partial)
    if there > file.size_bytes:
        partial.unlink()
        there = 0
    tag = f'"{file.digest}"'
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={there}-", "If-Range": tag} if there else {})
    with connection.streamed(file.address, headers) as answer:
        if answer.headers.get("etag") != tag:
            raise _ChangedError(f"{file.address} has changed.")
        is_part = answer.status_code == httpx.codes.PARTIAL_CONTENT
        start = there if is_part else 0
        with partial.open("ab" if is_part else "wb") as out:
            for piece in answer.iter_raw():
                _write(out, piece, partial)
                start += len(piece)
                tell(start, file.size_bytes)


def _write(out: BinaryIO, piece: bytes, path: Path) -> None:
    """Raises: OSError that names the file, as of a full disk."""
    try:
        out.write(piece)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
