"""Uploaded user code: unpacked by the driver into the attempt's folder, put onto the path by every rank."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import zipfile
from pathlib import Path

from syncnorm.import_path import without_checkout
from syncnorm.trainer.storage.storage import local_copy
from syncnorm.trainer.storage.sync import PATIENCE_S


def unpack(package: str, digest: str, into: Path) -> None:
    """Unpack an archive that the service has looked through; digest: `sha256:…`, as the spec names it.

    Raises: FileNotFoundError if it is not on storage any more; StorageError if that can't be asked; ValueError if it is
    another one than was uploaded.
    """
    with local_copy(package, patience_s=PATIENCE_S) as path, path.open("rb") as file:
        found = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        if found != digest:
            raise ValueError(f"code.package must be the archive that was uploaded, {digest}; on storage lies {found}.")
        shutil.rmtree(into, ignore_errors=True)
        with zipfile.ZipFile(file) as archive:
            archive.extractall(into)


def put_on_path(package: Path) -> None:
    """Let this process, and those it forks or spawns, import from `package` before all else.

    package: the folder it was unpacked into, or the archive itself, which Python imports from as it is.
    """
    if package.exists() and str(package) not in sys.path:
        sys.path.insert(0, str(package))


def hide_checkout() -> None:
    """Keep this process from importing our folders by the names they have in a checkout, as `trainer`.

    For processes of ours only that run a user's code: it changes `sys.path`.
    """
    sys.path[:] = without_checkout(sys.path, os.environ)
