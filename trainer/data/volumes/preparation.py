"""From a file's grid and intensities to those that the network gets, and back.

Shapes: X, Y, Z: the axes of a volume; C: channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from syncnorm.trainer.contract.catalog.volume_args import VolumeArgs
from syncnorm.trainer.data.volumes.nifti_files import Header, NiftiFile, nibabel


@dataclass(frozen=True, eq=False)
class Placement:
    """A file's grid and the prepared one.

    turn: nibabel's transform of the file's axes to those of the prepared grid. turned: shape after it. shape: after
    resampling, too.
    """

    turn: np.ndarray
    turn_back: np.ndarray
    turned: tuple[int, ...]
    shape: tuple[int, ...]

    @classmethod
    def of(cls, header: Header, axes: str, spacing: Sequence[float] | None) -> Placement:
        """axes: where those of the prepared grid point. nibabel.orientations has the transforms. A volume keeps its
        outer edges when it is resampled."""
        orient = nibabel().orientations
        stored, wanted = orient.io_orientation(header.affine), orient.axcodes2ornt(tuple(axes))
        turn = orient.ornt_transform(stored, wanted)
        turned, sizes = [0] * 3, [0.0] * 3
        for axis, side, size in zip(turn[:, 0], header.grid, voxel_sizes(header.affine), strict=True):
            turned[int(axis)], sizes[int(axis)] = side, float(size)
        shape = turned
        if spacing is not None:
            shape = [max(1, round(n * is_ / to)) for n, is_, to in zip(turned, sizes, spacing, strict=True)]
        return cls(turn, orient.ornt_transform(wanted, stored), tuple(turned), tuple(shape))

    def in_order(self, of_axes: np.ndarray) -> np.ndarray:
        """A number of each of the file's axes, in the order of the prepared ones."""
        ordered = np.empty_like(of_axes)
        ordered[self.turn[:, 0].astype(int)] = of_axes
        return ordered

    def onto(self, shape: tuple[int, ...]) -> Placement:
        """The same axes, with so many voxels."""
        return replace(self, shape=shape)

    def prepare(self, volume_XYZ: np.ndarray, *, nearest: bool) -> np.ndarray:
        turned = nibabel().orientations.apply_orientation(volume_XYZ, self.turn)
        return np.ascontiguousarray(resample(turned, self.shape, nearest=nearest))

    def restore(self, classes_CXYZ: np.ndarray) -> np.ndarray:
        """The class with the greatest score of each voxel of the file, uint8. Scores are resampled, not classes."""
        best = resample(classes_CXYZ[0], self.turned, nearest=False)
        labels = np.zeros(self.turned, np.uint8)
        for index, scores in enumerate(classes_CXYZ[1:], start=1):
            resampled = resample(scores, self.turned, nearest=False)
            labels[resampled > best] = index
            best = np.maximum(best, resampled)
        turned: np.ndarray = nibabel().orientations.apply_orientation(labels, self.turn_back)
        return np.ascontiguousarray(turned)


def voxel_sizes(affine: np.ndarray) -> np.ndarray:
    """In mm, along the axes as they are stored."""
    sizes: np.ndarray = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    return sizes


def resample(volume_XYZ: np.ndarray, shape: tuple[int, ...], *, nearest: bool) -> np.ndarray:
    """The same field of view in another number of voxels; outside of it the values of its rim."""
    if volume_XYZ.shape == shape:
        return volume_XYZ
    from scipy.ndimage import affine_transform

    scale = np.array(volume_XYZ.shape) / np.array(shape)
    out: np.ndarray = affine_transform(
        volume_XYZ, scale, 0.5 * scale - 0.5, shape, order=0 if nearest else 1, mode="nearest", prefilter=False
    )
    return out


def normalized(channel_XYZ: np.ndarray, form: VolumeArgs) -> np.ndarray:
    """One channel's intensities, float32, clipped and normalized as `form` says."""
    x = channel_XYZ.astype(np.float32)
    inside = x != 0
    if form.clip is not None:
        x = np.clip(x, form.clip[0], form.clip[1])
    if form.normalize == "none":
        return x
    if form.normalize == "unit":
        low, high = form.clip or (float(x.min()), float(x.max()))
        return (x - np.float32(low)) / np.float32(max(high - low, 1e-8))
    counted = x[inside] if form.normalize == "nonzero" and inside.any() else x
    mean, std = counted.mean(dtype=np.float64), counted.std(dtype=np.float64)
    x = ((x - mean) / max(float(std), 1e-8)).astype(np.float32)
    return np.where(inside, x, np.float32(0)) if form.normalize == "nonzero" else x


def axes_of(files: Sequence[NiftiFile], form: VolumeArgs) -> str:
    """Where the axes of a volume of these files point once it is prepared."""
    return form.orientation or files[0].header.axes


def prepared_image(where: str, names: Sequence[str], files: Sequence[NiftiFile], form: VolumeArgs) -> np.ndarray:
    """What the network gets of a volume's files, float32, (C, X, Y, Z). Raises: ValueError for a value that is no
    number."""
    axes = axes_of(files, form)
    shape = Placement.of(files[0].header, axes, form.spacing).shape
    channels = list[np.ndarray]()
    for name, file in zip(names, files, strict=True):
        if wrong := file.data.size - int(np.isfinite(file.data).sum()):
            raise ValueError(f"{where}: {name} must hold numbers, but {wrong} of its values are NaN or infinite.")
        placement = Placement.of(file.header, axes, None).onto(shape)
        each = file.data.reshape(*file.header.grid, file.header.channels)
        channels += [placement.prepare(normalized(each[..., at], form), nearest=False) for at in range(each.shape[-1])]
    return np.stack(channels)
