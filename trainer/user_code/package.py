"""Uploaded user code: the driver unpacks it into the attempt's folder, and every rank puts it onto its path."""

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
from syncnorm.trainer.user_code import lightning_names


def unpack(package: str, digest: str, into: Path) -> None:
    """Unpack an archive that the service has checked; digest: `sha256:…`, as in the spec.

    Raises: FileNotFoundError if it is no longer on the storage; StorageError if the storage is unavailable; ValueError
    if it is another archive than was uploaded.
    """
    with local_copy(package, patience_s=PATIENCE_S) as path, path.open("rb") as file:
        found = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        if found != digest:
            raise ValueError(f"code.package must be the archive that was uploaded, {digest}; the storage has {found}.")
        shutil.rmtree(into, ignore_errors=True)
        with zipfile.ZipFile(file) as archive:
            archive.extractall(into)


def put_on_path(package: Path) -> None:
    """Make this process, and those it forks or spawns, import from `package`, a folder, before everything else."""
    if package.exists() and str(package) not in sys.path:
        sys.path.insert(0, str(package))


def prepare_imports() -> None:
    """Make this process import what a user's code means: Lightning as one package, whichever of its names the code
    has, and our folders by none of the names they have in a checkout, such as `trainer`.

    For processes of ours only that run a user's code: it changes `sys.path` and `sys.meta_path`.
    """
    sys.path[:] = without_checkout(sys.path, os.environ)
    lightning_names.unite()
