"""Uploaded user code: zip archives under the digest of their content, where every worker can read them.

An archive is checked before it is stored, so that unpacking it can neither leave its folder nor fill a disk.
"""

from __future__ import annotations

import os
import re
import stat
import zipfile
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import IO

from syncnorm.trainer.storage.storage import local_copy, storage_at

MAX_FILES = 2000
MAX_BYTES = 128 * 2**20
"""Size limit of all files together, unpacked."""
MAX_RATIO = 100
"""Largest ratio of unpacked to packed size, for archives of more than a mebibyte."""
_HIDES_US = re.compile(r"syncnorm(/__init__)?\.(py|pyc|so|[\w-]+\.so)")
"""A file that `import syncnorm` of a worker would find before ours."""
_MOST_TEXT = 2**20
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


class PackageError(ValueError):
    """An archive that is not accepted."""


class CodePackages:
    """root: the storage of the service, a folder or an fsspec URL. Methods raise StorageError while it is
    unavailable."""

    def __init__(self, root: str, check: Callable[[], None] = lambda: None) -> None:
        """check: raises StorageError if the storage is not mounted."""
        self._check = check
        self._folder = f"{root.rstrip('/')}/packages"

    def path(self, digest: str) -> str:
        """Its path for workers. digest: as in the spec, `sha256:…`."""
        return f"{self._folder}/{_name(digest)}"

    def has(self, digest: str) -> bool:
        self._check()
        return storage_at(self._folder).has(_name(digest))

    def read_text(self, digest: str, name: str) -> str:
        """A text file in the package. Raises: FileNotFoundError; ValueError if it is no text, or not a small one."""
        self._check()
        with local_copy(self.path(digest)) as path, zipfile.ZipFile(path) as archive:
            try:
                entry = archive.getinfo(name)
            except KeyError as error:
                raise FileNotFoundError(name) from error
            if entry.file_size > _MOST_TEXT:
                raise ValueError(f"{name} must not exceed {_MOST_TEXT >> 10} KiB")
            return archive.read(entry).decode()

    def put(self, digest: str, archive: IO[bytes]) -> None:
        """Store an archive that was checked. Readers see all of it or nothing."""
        self._check()
        archive.seek(0)
        storage_at(self._folder).write(_name(digest), archive.read())


def _name(digest: str) -> str:
    return f"{digest.removeprefix('sha256:')}.zip"


def check(archive: IO[bytes]) -> int:
    """Check an archive; returns its number of files. Raises: PackageError with the first problem."""
    try:
        with zipfile.ZipFile(archive) as opened:
            entries = opened.infolist()
            _check_sizes(entries, archive.seek(0, os.SEEK_END))
            for entry in entries:
                _check_entry(entry)
            names = [entry.filename for entry in entries]
            if len(set(names)) < len(names):
                twice = next(name for name in names if names.count(name) > 1)
                raise PackageError(f"every name may occur once, but {twice!r} occurs twice")
            _read_all(opened, entries)
            return sum(not entry.is_dir() for entry in entries)
    except PackageError:
        raise
    except Exception as error:  # zipfile has a dozen kinds of them for damaged archives
        raise PackageError(f"it must be a readable zip archive: {error}") from error


def python_sources(archive: IO[bytes]) -> dict[str, str]:
    """The text of every Python file of a checked archive, by path; what is no text is left out."""
    with zipfile.ZipFile(archive) as opened:
        read = ((name, opened.read(name)) for name in opened.namelist() if name.endswith(".py"))
        return {name: data.decode(errors="replace") for name, data in read if len(data) <= _MOST_TEXT}


def _check_sizes(entries: list[zipfile.ZipInfo], packed: int) -> None:
    if len(entries) > MAX_FILES:
        raise PackageError(f"it must not hold more than {MAX_FILES} files, got {len(entries)}")
    total = sum(entry.file_size for entry in entries)
    if total > MAX_BYTES:
        raise PackageError(f"its files must not exceed {MAX_BYTES} bytes together, got {total}")
    if total > 2**20 and total > MAX_RATIO * packed:
        raise PackageError(
            f"it must not unpack to more than {MAX_RATIO} times its size, got {total} from {packed} bytes"
        )


def _check_entry(entry: zipfile.ZipInfo) -> None:
    name = entry.orig_filename
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\\" in name or ":" in parts[0] or len(name) > 400:
        raise PackageError(f"names must be plain relative paths inside the archive, got {name[:100]!r}")
    if not name.isprintable():
        raise PackageError(f"names must not hold control characters, got {name[:100]!r}")
    if _HIDES_US.fullmatch(str(PurePosixPath(name))):
        raise PackageError(
            f"it must not hold a module named syncnorm, got {name!r}. Workers import your code before all else, so it "
            "would take the place of the library that runs your job. Rename it"
        )
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise PackageError(f"it must hold files and folders only, no links; {name[:100]!r} is something else")
    if entry.flag_bits & 0x1:
        raise PackageError(f"it must not be encrypted, but {name[:100]!r} is")
    if entry.compress_type not in _METHODS:
        raise PackageError(f"it must be stored or deflated, but {name[:100]!r} is compressed otherwise")


def _read_all(opened: zipfile.ZipFile, entries: list[zipfile.ZipInfo]) -> None:
    """Check that every file can be read to its end, with the checksum and size that were declared."""
    for entry in entries:
        with opened.open(entry) as file:
            left = entry.file_size
            while piece := file.read(2**20):
                left -= len(piece)
        if left:
            raise PackageError(f"{entry.filename!r} does not have the size that the archive declares")
