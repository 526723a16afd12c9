"""Arguments of data that consists of volumes."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from syncnorm.trainer.contract.catalog.init_args import LARGEST_SAMPLE, InitArgs, Positive


class VolumeArgs(InitArgs):
    """How a volume becomes what the network gets, in training and wherever the trained model is applied."""

    channels: Annotated[int, Field(ge=1, le=64)] = 1
    """Channels of an image: files of one volume, or entries of its fourth dimension. Default: 1."""
    orientation: Annotated[str, Field(pattern="^[RLAPSI]{3}$", max_length=3)] | None = "RAS"
    """Where the three axes of a volume point, as nibabel writes it; every volume is turned to it. null: as in the
    file. Default: RAS."""
    spacing: Annotated[list[Annotated[float, Field(ge=1e-3, le=1e3)]], Field(min_length=3, max_length=3)] | None = None
    """Size of a voxel along these axes, in mm; every volume is resampled to it, images linearly and masks to the
    nearest voxel. Default: null, as in the file."""
    clip: Annotated[list[Annotated[float, Field(ge=-1e9, le=1e9)]], Field(min_length=2, max_length=2)] | None = None
    """Least and greatest intensity, such as [-160, 240] in CT; others are set to these. Default: null, none."""
    normalize: Literal["zscore", "nonzero", "unit", "none"] = "zscore"
    """Intensities of each channel of a volume, once clipped: `zscore` less their mean, over their standard deviation;
    `nonzero` the same, of the voxels that are not 0, which stay 0 outside; `unit` from 0 to 1; `none` as they are.
    Default: zscore."""
    labels: Annotated[list[Annotated[int, Field(ge=0, le=65_535)]], Field(min_length=2, max_length=256)] | None = None
    """Values in the masks, in the order of the classes and the background first, such as [0, 1, 2, 4]. `syncnorm
    predict` writes them, too. Default: null, 0 to num_classes - 1."""
    patch: Annotated[list[Positive], Field(min_length=3, max_length=3)] = [96, 96, 96]
    """Sides of a training sample in voxels, and of the windows that whole volumes are run by. Default: [96, 96, 96]."""
    windows: Literal["separate", "joint"] = "separate"
    """How whole volumes are run, in validation and by `syncnorm predict`: `separate` by windows, each by itself;
    `joint` so that the network gives what it gives for the whole volume, with statistics of the whole, by norm.tiled.
    On a GPU it holds the tensors of a part at a time, and on a CPU those of the whole. An exported file runs windows
    one by one, so predict then builds the trained network. Default: separate."""
    overlap: Annotated[float, Field(ge=0, le=0.95)] | Literal["auto"] = 0.5
    """Share of a window's side that its neighbour covers too, at least. `auto`: as far as the network looks, twice, and
    only positions count around which it sees all that it looks at. It needs a patch of more than that. With joint
    windows it says how those lie that they are compared with. Default: 0.5."""
    blending: Literal["gaussian", "constant"] = "gaussian"
    """How overlapping windows are averaged: `gaussian` counts the centre of a window more than its rim, with a standard
    deviation of an eighth of its side; `constant` counts all alike. Default: gaussian."""
    windows_at_once: Annotated[int, Field(ge=1, le=1024)] = 4
    """Windows that go through the network in one batch. Affects memory, not results. Default: 4."""

    @model_validator(mode="after")
    def _can_be_honoured(self) -> VolumeArgs:
        if self.orientation is not None and {_AXES[letter] for letter in self.orientation} != {0, 1, 2}:
            raise ValueError(
                f"orientation must have one of R/L, of A/P and of S/I, such as RAS; got {self.orientation}"
            )
        if self.clip is not None and self.clip[0] >= self.clip[1]:
            raise ValueError(f"clip must begin with the smaller number; got {self.clip}")
        if self.labels is not None and len(set(self.labels)) < len(self.labels):
            raise ValueError(f"labels must name each value once; got {self.labels}")
        if (size := math.prod(self.patch) * self.channels) > LARGEST_SAMPLE:
            raise ValueError(f"patch must not have more than {LARGEST_SAMPLE} values, got {size}; take a smaller one")
        return self


_AXES = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}


class NiftiArgs(VolumeArgs):
    """Volumes and masks as NIfTI files (.nii, .nii.gz), trained by patches, validated whole. Segmentation.

    `{root}/images/NAME.nii.gz` and `{root}/masks/NAME.nii.gz`, or a JSON list of files. Needs the extra `medical`.
    """

    root: Annotated[str, Field(min_length=1, max_length=1024)]
    """A folder that every worker reaches, or a URL (s3://, gs://). No default."""
    images: Annotated[str, Field(min_length=1, max_length=1024)] = "images"
    """Folder below root with the images: NAME.nii.gz, or NAME_0000.nii.gz, NAME_0001.nii.gz, … for several channels in
    files of their own, as nnU-Net has them. Default: images."""
    masks: Annotated[str, Field(min_length=1, max_length=1024)] = "masks"
    """Folder below root with a mask NAME.nii.gz for each image, a voxel's value being its class. Default: masks."""
    datalist: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    """In place of these two folders, a JSON file below root as the Medical Segmentation Decathlon and MONAI have it:
    `{"training": [{"image": "a.nii.gz", "label": "b.nii.gz"}], "validation": [...]}`. An image may be a list of files,
    one for each channel. Without `validation`, a share of the training volumes is held out. Default: null."""
    num_classes: Annotated[int, Field(ge=2, le=256)]
    """Classes in the masks, whose values are 0 (the background) to num_classes - 1, or those of labels. No default."""
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the volumes that is held out for validation, unless the datalist says which. Default: 0.2."""
    patches_per_volume: Annotated[int, Field(ge=1, le=65_536)] = 4
    """Training patches from each volume in an epoch. Default: 4."""
    foreground: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of a volume's patches that are centred on a voxel of a class other than 0, each such class with the same
    probability. The others lie anywhere. Default: 0.5."""
    flips: Annotated[list[Annotated[int, Field(ge=0, le=2)]], Field(max_length=3)] = [0, 1, 2]
    """Axes along which training patches are mirrored, each half of the time. Leave out an axis whose sides mean
    something, as left and right kidney. Default: [0, 1, 2]."""
    check_masks: bool = True
    """Read all masks and check their labels before training. false: check them as they are read in training, which
    starts sooner with thousands of volumes. Default: true."""
    cache: Literal["memory", "disk", "none"] = "memory"
    """Where prepared volumes are kept: in the memory of each process that reads them; in a folder on each host that all
    its processes share (in SYNCNORM_SCRATCH, or else the temporary folder); or nowhere, so that a volume is read again
    for each patch. Default: memory."""
    cache_gib: Annotated[float, Field(gt=0, le=65_536)] = 4.0
    """Size of the cache in GiB. Volumes beyond it are read again each time. Default: 4."""
    num_workers: Annotated[int, Field(ge=0, le=64)] = 0
    """Worker processes that read ahead, of each training process; best with cache: disk, which they share. Default: 0,
    read in the training process."""

    @model_validator(mode="after")
    def _labels_are_classes(self) -> NiftiArgs:
        if self.labels is not None and len(self.labels) != self.num_classes:
            raise ValueError(
                f"labels must name a value for each of num_classes {self.num_classes}; got {len(self.labels)} values"
            )
        return self
