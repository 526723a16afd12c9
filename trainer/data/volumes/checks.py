"""What must hold of the files of a volume, in sentences that name them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from syncnorm.trainer.contract.catalog.volume_args import NiftiArgs, VolumeArgs
from syncnorm.trainer.contract.text import counted
from syncnorm.trainer.data.remote_files import Storage
from syncnorm.trainer.data.volumes.nifti_files import Header, nibabel, read_file, read_header
from syncnorm.trainer.data.volumes.preparation import Placement, voxel_sizes
from syncnorm.trainer.data.volumes.records import Record

logger = logging.getLogger(__name__)

_THREADS = 8  # decompression and a network leave the interpreter's lock alone
_SHOWN = 5
_ALIKE = 1.2
"""How many times larger voxels of one volume may be than those of another before that is logged."""
_TENTH = 0.1
"""Of a voxel: how far the corners of a mask may be from those of its image."""


def check_headers(storage: Storage, records: Sequence[Record], args: NiftiArgs) -> None:
    """Shapes, places and channels of all volumes, from their headers alone. Voxels of different sizes are logged.

    Raises: ValueError with the first problems; MissingDataError for a file that is not there.
    """
    sizes = list[np.ndarray]()

    def problems(record: Record) -> list[str]:
        try:
            header = read_header(storage, record.images[0])
            sizes.append(
                Placement.of(header, args.orientation or header.axes, None).in_order(voxel_sizes(header.affine))
            )
            return list(_of_headers(storage, record, args))
        except ValueError as error:
            return [str(error)]

    _raise(_in_threads(problems, records))
    if args.spacing is None:
        _tell_sizes(storage.where, np.array(sizes))


def _tell_sizes(where: str, sizes_N3: np.ndarray) -> None:
    """Log that nothing is resampled where volumes differ: a network sees voxels, not millimetres."""
    least, largest = sizes_N3.min(axis=0), sizes_N3.max(axis=0)
    if (largest > _ALIKE * least).any():
        logger.warning(
            "%s: the volumes have voxels from %s to %s mm, and nothing is resampled, so what is as large in the body "
            "has another number of voxels in each. Set data.init_args.spacing, for example to their median, %s.",
            where,
            _sizes(least),
            _sizes(largest),
            _sizes(np.median(sizes_N3, axis=0)),
        )


def _sizes(sizes: np.ndarray) -> str:
    return f"[{', '.join(f'{size:.3g}' for size in sizes)}]"


def check_masks(storage: Storage, records: Sequence[Record], args: NiftiArgs) -> np.ndarray:
    """How many voxels all masks have of each class.

    Raises: ValueError with the first problems.
    """
    counts = np.zeros(args.num_classes, np.int64)

    def problems(record: Record) -> list[str]:
        try:
            labels = labels_of(storage, record.mask, read_file(storage, record.mask).data, args)
        except ValueError as error:
            return [str(error)]
        np.add(counts, np.bincount(labels.ravel(), minlength=args.num_classes), out=counts)
        return []

    _raise(_in_threads(problems, records))
    return counts


def labels_of(storage: Storage, name: str, values: np.ndarray, args: NiftiArgs) -> np.ndarray:
    """A mask's values as classes, uint8. Raises: ValueError naming the file."""
    where = storage.where
    if not np.issubdtype(values.dtype, np.integer) and (fractions := values[values != np.floor(values)]).size:
        raise ValueError(
            f"{where}: {name} must hold whole numbers, the class of each voxel; {counted(fractions.size, 'voxel')} "
            f"differ, such as {fractions.flat[0]:g}. Is it an image, or an interpolated mask?"
        )
    return (
        _numbered(where, name, values, args.num_classes) if args.labels is None else _named(where, name, values, args)
    )


def _numbered(where: str, name: str, values: np.ndarray, num_classes: int) -> np.ndarray:
    """Values that are the classes themselves."""
    least, largest = values.min(), values.max()
    if least < 0 or largest >= num_classes:
        wrong = largest if largest >= num_classes else least
        raise ValueError(
            f"{where}: {name} holds the class {wrong:g}, but data.init_args.num_classes is {num_classes}, so values "
            f"must be 0 to {num_classes - 1}. If your masks number the classes otherwise, name their values in "
            "data.init_args.labels, such as [0, 1, 4]."
        )
    return values.astype(np.uint8)


def _named(where: str, name: str, values: np.ndarray, args: NiftiArgs) -> np.ndarray:
    """Values that stand for classes, as args.labels says."""
    assert args.labels is not None
    found, places = np.unique(values, return_inverse=True)
    classes = {value: number for number, value in enumerate(args.labels)}
    if unknown := [value for value in found.tolist() if value not in classes]:
        raise ValueError(
            f"{where}: {name} holds the value {unknown[0]:g}, which is none of data.init_args.labels {args.labels}. "
            "Add it there, or correct the mask."
        )
    numbers = np.array([classes[value] for value in found.tolist()], np.uint8)
    return numbers[places].reshape(values.shape)


def require_channels(where: str, names: Sequence[str], headers: Sequence[Header], form: VolumeArgs) -> None:
    """Raises: ValueError unless these files have as many channels as form.channels, on one grid."""
    found = sum(header.channels for header in headers)
    if found != form.channels:
        raise ValueError(
            f"{where}: {' and '.join(names)} must have {counted(form.channels, 'channel')}, as channels says, got "
            f"{found}."
        )
    for name, header in zip(names[1:], headers[1:], strict=True):
        if problem := _apart(header, headers[0]):
            raise ValueError(f"{where}: {name} must lie where {names[0]} does, {problem}.")


def _of_headers(storage: Storage, record: Record, args: NiftiArgs) -> Iterator[str]:
    headers, mask = [read_header(storage, name) for name in record.images], read_header(storage, record.mask)
    require_channels(storage.where, record.images, headers, args)
    where, first = storage.where, record.images[0]
    if mask.channels != 1:
        yield f"{where}: {record.mask} must have one value a voxel, its class; got shape {mask.shape}."
    elif problem := _apart(mask, headers[0]):
        yield f"{where}: {record.mask} must lie where its image {first} does, {problem}."
    shape = Placement.of(headers[0], args.orientation or headers[0].axes, args.spacing).shape
    if any(side > length for side, length in zip(args.patch, shape, strict=True)):
        yield (
            f"{where}: {first} must be as large as data.init_args.patch {tuple(args.patch)}, but it has {shape} voxels"
            f"{' in this orientation and spacing' if args.spacing else ''}. Use a smaller patch, or leave it out."
        )


def _apart(header: Header, reference: Header) -> str | None:
    """In what they differ; None if their voxels are at the same places, in whatever order the axes are stored."""
    placement = Placement.of(header, reference.axes, None)
    axes = f", with axes that point {header.axes} and {reference.axes}" if header.axes != reference.axes else ""
    if placement.turned != reference.grid:
        return f"but it has {header.grid} voxels, not {reference.grid}{axes}"
    turned = header.affine @ nibabel().orientations.inv_ornt_aff(placement.turn, header.grid)
    distance = np.abs(_corners(turned, reference.grid) - _corners(reference.affine, reference.grid)).max()
    if distance > _TENTH * voxel_sizes(reference.affine).min():
        return f"but its affine puts it up to {distance:.3g} mm away{axes}"
    return None


def _corners(affine: np.ndarray, grid: tuple[int, ...]) -> np.ndarray:
    """Of the outermost voxels' centres, in mm, (8, 3)."""
    ends = np.array(np.meshgrid(*[(0, side - 1) for side in grid], indexing="ij")).reshape(3, -1).T
    out: np.ndarray = ends @ affine[:3, :3].T + affine[:3, 3]
    return out


def _in_threads(problems: Callable[[Record], list[str]], records: Sequence[Record]) -> list[str]:
    with ThreadPoolExecutor(_THREADS) as pool:
        return [problem for found in pool.map(problems, records) for problem in found]


def _raise(problems: Sequence[str]) -> None:
    if problems:
        more = len(problems) - _SHOWN
        raise ValueError("\n".join([*problems[:_SHOWN], *([f"And {more} more of the kind."] if more > 0 else [])]))
