"""NIfTI files on disk or at a URL: their headers by themselves, and their voxels."""

from __future__ import annotations

import gzip
import math
import os
import zlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import PurePosixPath
from typing import Any, cast

import numpy as np

from syncnorm.trainer.data.remote_files import Storage
from syncnorm.trainer.errors import MissingDataError

SUFFIXES = (".nii", ".nii.gz")
_HEADER = {348: "Nifti1Header", 540: "Nifti2Header"}
"""Class by the size of the header, which is its first number."""


@dataclass(frozen=True, eq=False)
class Header:
    """shape: as stored, without dimensions of one at its end. affine: from indices to mm, (4, 4)."""

    shape: tuple[int, ...]
    affine: np.ndarray
    axes: str
    """Where the three axes point, such as RAS."""

    @property
    def grid(self) -> tuple[int, ...]:
        return self.shape[:3]

    @property
    def channels(self) -> int:
        return self.shape[3] if len(self.shape) > 3 else 1


@dataclass(frozen=True, eq=False)
class NiftiFile:
    """A whole file: header and voxels, of which `data` is (X, Y, Z) or (X, Y, Z, channels), scaled as the header says.

    raw: nibabel's header, to write a file like this one.
    """

    header: Header
    data: np.ndarray
    raw: Any


def nibabel() -> Any:
    """Raises: ValueError that says what to install."""
    try:
        import nibabel as library
    except ImportError as error:
        raise ValueError(
            f"data.name: nifti needs nibabel, which can't be imported here: {error}. "
            "Install the extra: pip install 'syncnorm[medical]'."
        ) from error
    return library


def stem(name: str) -> str:
    """The path without .nii or .nii.gz."""
    return name.removesuffix(".gz").removesuffix(".nii")


def read_header(storage: Storage, name: str) -> Header:
    """Reads no voxels, unless the size of the file says that some are missing.

    Raises: ValueError naming the file; MissingDataError if there is none.
    """
    try:
        with storage.filesystem.open(str(PurePosixPath(storage.path) / name), "rb") as file:
            stream = gzip.GzipFile(fileobj=file) if name.endswith(".gz") else file
            start = cast(bytes, stream.read(max(_HEADER)))
            holds = _bytes_in(file, is_compressed=name.endswith(".gz"))
    except FileNotFoundError as error:
        raise MissingDataError(f"{storage.where}: there is no file {storage.url}/{name}.") from error
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(storage, name, error) from error
    raw = _parsed(storage, name, start)
    header = _header(storage, name, raw)
    wants = int(raw["vox_offset"]) + math.prod(header.shape) * raw.get_data_dtype().itemsize
    if holds % 2**32 != wants % 2**32:  # as gzip counts
        read_file(storage, name)  # it may be whole all the same: of several parts, or with more behind its voxels
    return header


def _bytes_in(file: Any, *, is_compressed: bool) -> int:
    """How many a file has, once decompressed; gzip says it modulo 2^32 at its end."""
    size = int(file.seek(0, os.SEEK_END))
    if not is_compressed:
        return size
    file.seek(-4, os.SEEK_END)
    return int.from_bytes(file.read(4), "little")


def read_file(storage: Storage, name: str) -> NiftiFile:
    """Raises: ValueError naming the file; MissingDataError if there is none."""
    content = storage.read(name)
    try:
        content = gzip.decompress(content) if name.endswith(".gz") else content
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(storage, name, error) from error
    raw = _parsed(storage, name, content)
    header = _header(storage, name, raw)
    kind = nibabel().Nifti2Image if raw.sizeof_hdr == 540 else nibabel().Nifti1Image
    try:
        data = np.asanyarray(kind.from_stream(BytesIO(content)).dataobj)
    except (OSError, ValueError, EOFError, nibabel().spatialimages.HeaderDataError) as error:
        raise _unreadable(storage, name, error) from error
    return NiftiFile(header, data.reshape(header.shape), raw)


def _parsed(storage: Storage, name: str, start: bytes) -> Any:
    """nibabel's header from the first bytes of a file."""
    library, first = nibabel(), start[:4]
    size = next((n for n in _HEADER if n in (int.from_bytes(first, "little"), int.from_bytes(first, "big"))), None)
    if size is None or len(start) < size:
        what = f"it ends after {len(start)} bytes" if len(start) < min(_HEADER) else "it doesn't begin as one"
        raise _unreadable(storage, name, what)
    try:
        header = getattr(library, _HEADER[size])(start[:size], check=False)
    except (ValueError, library.spatialimages.HeaderDataError, library.wrapstruct.WrapStructError) as error:
        raise _unreadable(storage, name, error) from error
    if header["magic"].item() not in (b"n+1", b"n+2"):
        raise _unreadable(storage, name, "its voxels are in another file (.hdr and .img)")
    return header


def _header(storage: Storage, name: str, raw: Any) -> Header:
    shape, affine = tuple(int(side) for side in raw.get_data_shape()), np.asarray(raw.get_best_affine(), float)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) not in (3, 4) or min(shape) < 1:
        raise ValueError(
            f"{storage.where}: {name} must be a volume of three dimensions, and a fourth for its channels if it has "
            f"several; got shape {shape}."
        )
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise ValueError(
            f"{storage.where}: {name} must say where its voxels lie, but its affine can't be inverted: "
            f"{affine[:3].tolist()}. Write the file again with a valid sform or qform."
        )
    return Header(shape, affine, "".join(map(str, nibabel().aff2axcodes(affine))))


def _unreadable(storage: Storage, name: str, why: object) -> ValueError:
    return ValueError(
        f"{storage.where}: {name} must be a whole NIfTI file, but it can't be read ({why}). Replace it or leave it out."
    )
