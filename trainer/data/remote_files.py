"""Files in a folder on disk, or under any URL that fsspec knows (s3://, gs://, memory://, …)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

import fsspec

from syncnorm.trainer.errors import MissingDataError
from syncnorm.trainer.storage.filesystems import INSTALL, filesystem_at


@dataclass(frozen=True)
class Storage:
    """A place that a spec names. where: the spec path it came from. url: as the user wrote it."""

    where: str
    url: str
    filesystem: fsspec.AbstractFileSystem
    path: str

    def files(self, suffixes: frozenset[str]) -> list[str]:
        """Files with these suffixes anywhere below, relative to the folder, sorted, without hidden ones.

        Raises: MissingDataError if there are none.
        """
        if not self.filesystem.isdir(self.path):
            raise MissingDataError(
                f"{self.where}: there is no folder {self.url}. Every worker must be able to read it."
            )
        root = PurePosixPath(self.path)
        found = [PurePosixPath(name).relative_to(root) for name in self.filesystem.find(self.path)]
        kept = [str(name) for name in found if name.suffix.lower() in suffixes and not name.name.startswith(".")]
        if not kept:
            raise MissingDataError(
                f"{self.where}: {self.url} holds no file that ends in {', '.join(sorted(suffixes))}."
            )
        return sorted(kept)

    def read(self, name: str) -> bytes:
        try:
            content: bytes = self.filesystem.cat_file(str(PurePosixPath(self.path) / name))
        except FileNotFoundError as error:
            raise MissingDataError(f"{self.where}: {self.url}/{name} was deleted since the job began.") from error
        return content


def read_file(where: str, url: str) -> bytes:
    """The content of a file that a spec names. Raises: MissingDataError if there is none; ValueError as
    open_storage."""
    storage = open_storage(where, url)
    try:
        content: bytes = storage.filesystem.cat_file(storage.path)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise MissingDataError(f"{where}: there is no file {url}. Every worker must be able to read it.") from error
    return content


def open_storage(where: str, url: str) -> Storage:
    """Raises: ValueError naming `where` if the URL is of a kind that can't be read here."""
    try:
        filesystem, path = filesystem_at(url)
    except (ImportError, ValueError) as error:
        raise ValueError(f"{where}: {url} can't be read: {error}. {INSTALL}") from error
    return Storage(where, url, filesystem, path)
