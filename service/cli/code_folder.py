"""Folders of code: packed, uploaded, and replaced in a job by their digest."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

from syncnorm.service.cli.job_files.job_file import SpecFileError, code_folder_of
from syncnorm.service.cli.terminal import err
from syncnorm.service.client.client import Client
from syncnorm.trainer.contract.text import visible

MAX_BYTES = 128 * 2**20
"""The limit of `syncnorm.service.storage.code_packages`."""
_EPOCH = (1980, 1, 1, 0, 0, 0)


def with_package(client: Client, job: Any) -> Any:
    """`job`, with the digest of the folder that its `code.package` names, which is uploaded.

    Anything but a folder is for the service to judge, as a digest is.
    Raises: SpecFileError if it is a path, but not of a folder, or of one that is too large.
    """
    if (named := code_folder_of(job)) is None:
        return job
    if not Path(named).is_dir():
        raise SpecFileError(
            f"code.package must be a folder, or a digest that `syncnorm package put` printed; {named} is no folder."
        )
    try:
        package = upload(client, Path(named))["package"]
    except ValueError as error:
        raise SpecFileError(f"code.package: {error}") from error
    err.print(visible(f"code.package: {named} is {package}"), soft_wrap=True)
    return {**job, "code": {**job["code"], "package": package}}


def upload(client: Client, folder: Path) -> dict[str, Any]:
    """What the service says of the package, whose hints are printed.

    Raises: ValueError as `pack` does.
    """
    found = client.put_package(pack(folder))
    for hint in found.get("hints", []):
        err.print(visible(f"{hint}."), style="yellow", soft_wrap=True)
    return found


def pack(folder: Path) -> bytes:
    """A zip of a folder without hidden files and caches. The same files give the same bytes, so the same digest.

    Raises: ValueError for more than the service accepts.
    """
    made, size = io.BytesIO(), 0
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder)
            hidden = any(part.startswith(".") or part == "__pycache__" for part in name.parts)
            if path.is_file() and not path.is_symlink() and not hidden:
                size += path.stat().st_size
                if size > MAX_BYTES:
                    raise ValueError(f"{folder} must not hold more than {MAX_BYTES >> 20} MiB. Keep data out of it.")
                entry = zipfile.ZipInfo(name.as_posix(), _EPOCH)
                entry.external_attr = 0o644 << 16
                archive.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED)
    return made.getvalue()
