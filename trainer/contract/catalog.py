"""Built-in models and data sets: names and arguments. Free of torch, so that the service can check a spec."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator


class InitArgs(BaseModel):
    """Arguments of a built-in model or data set. The first line of a subclass is the summary in catalogs."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


Positive = Annotated[int, Field(ge=1, le=65_536)]
Samples = Annotated[int, Field(ge=1, le=10**9)]
Column = Annotated[str, Field(min_length=1, max_length=256)]
LARGEST_SAMPLE = 2**31
Fraction = Annotated[float, Field(ge=0, lt=1)]
WholeSampleTask = Literal["classification", "regression", "multilabel"]
Activation = Literal["relu", "silu", "gelu", "leaky_relu", "tanh"]


class ResNetArgs(InitArgs):
    """Residual network: CIFAR-style of depth 6n+2 (He et al. 2015, sec. 4.2), or ImageNet-style 18, 34, 50."""

    depth: Annotated[int, Field(ge=8, le=1202)] = 14
    """6n+2 (8, 14, 20, …) for small images; 18, 34 or 50 for the ImageNet-style network. Default: 14."""
    width: Positive = 16
    """Channels of the first stage. Default: the paper's, 16 (CIFAR-style) or 64 (ImageNet-style)."""
    activation: Activation = "relu"
    """Activation after each normalization. Default: relu."""

    @model_validator(mode="before")
    @classmethod
    def _width_of_the_paper(cls, value: Any) -> Any:
        if isinstance(value, dict) and "width" not in value and value.get("depth") in (18, 34, 50):
            return {**value, "width": 64}
        return value

    @model_validator(mode="after")
    def _known_depth(self) -> ResNetArgs:
        if self.depth not in (18, 34, 50) and (self.depth < 8 or (self.depth - 2) % 6):
            raise ValueError(f"depth must be 6n+2 (8, 14, 20, …) or one of 18, 34, 50; got {self.depth}")
        return self


class VggArgs(InitArgs):
    """VGG (Simonyan & Zisserman 2014) in its CIFAR form: convolutions, pooling, one linear layer."""

    depth: Literal[11, 13, 16, 19] = 11
    """Layers with weights, as the paper counts them. Default: 11."""
    width: Positive = 64
    """Channels of the first stage. Default: 64, as in the paper."""
    activation: Activation = "relu"
    """Activation after each normalization. Default: relu."""


class MlpArgs(InitArgs):
    """Fully connected network."""

    hidden: Annotated[list[Positive], Field(min_length=1, max_length=32)] = [128, 128]
    """Units of each hidden layer. Default: [128, 128]."""
    activation: Activation = "relu"
    """Activation after each normalization. Default: relu."""
    dropout: Fraction = 0.0
    """Share of the units of each hidden layer that is dropped in training. Default: 0."""


class CnnArgs(InitArgs):
    """Plain convolutional network: 3x3 convolutions, each with norm and activation, pooled between stages."""

    channels: Annotated[list[Positive], Field(min_length=1, max_length=16)] = [32, 64, 128]
    """Channels of each stage; a stage halves the resolution. Default: [32, 64, 128]."""
    convs_per_stage: Annotated[int, Field(ge=1, le=8)] = 1
    """Convolutions in each stage. Default: 1."""
    activation: Activation = "relu"
    """Activation after each normalization. Default: relu."""
    dropout: Fraction = 0.0
    """Share of the features before the output layer that is dropped in training. Default: 0."""
    init_gain: Annotated[float, Field(gt=0, le=1e30)] = 1.0
    """Factor on the initial weights of the convolutions, to see what normalization does about their scale. Default:
    1."""


class LstmArgs(InitArgs):
    """LSTM over the rows of an image, with normalization inside the cell (Ba et al. 2016, sec. 4 of the supplement)."""

    hidden: Positive = 64
    """Units of each layer. Default: 64."""
    layers: Annotated[int, Field(ge=1, le=8)] = 1
    """Layers. Default: 1."""


class UnetArgs(InitArgs):
    """U-Net (Ronneberger et al. 2015; Çiçek et al. 2016 in 3-D) with zero-padded convolutions: same size in and out."""

    dims: Literal[2, 3] = 2
    """2 for images, 3 for volumes. Default: 2."""
    width: Positive = 16
    """Channels at full resolution, doubled at each level. Default: 16."""
    depth: Annotated[int, Field(ge=1, le=6)] = 3
    """How often the resolution is halved. Default: 3."""
    activation: Activation = "relu"
    """Activation after each normalization. Default: relu."""


LIBRARIES = ("timm/", "torchvision/")
"""What names of models begin with whose arguments only their library knows."""
MODELS: dict[str, type[InitArgs]] = {
    "resnet": ResNetArgs,
    "vgg": VggArgs,
    "mlp": MlpArgs,
    "cnn": CnnArgs,
    "lstm": LstmArgs,
    "unet": UnetArgs,
}


class DigitsArgs(InitArgs):
    """The 1,797 real 8x8 digits that scikit-learn ships (Alpaydin & Kaynak 1998, UCI optdigits). Classification."""

    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of every class that is held out for validation. Default: 0.2."""
    augment: bool = False
    """Shift training images by up to one pixel at random. Default: false."""


class ImageFolderArgs(InitArgs):
    """`{root}/train/{class}/*.png` and `{root}/val/{class}/*.png`, or `{root}/{class}/*.png`. Classification.

    root is a folder or a URL (s3://, gs://). Without `val`, a fraction of every class is held out.
    """

    root: Annotated[str, Field(min_length=1, max_length=1024)]
    """A folder that every worker reaches, or a URL (s3://, gs://). No default."""
    size: Positive = 224
    """Height and width of a sample in pixels; images are cropped to a square and resized. Default: 224."""
    channels: Literal[1, 3] = 3
    """1 for grey images, 3 for RGB. Default: 3."""
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of every class that is held out for validation if there is no folder `val`. Default: 0.1."""
    augment: bool = True
    """Crop training images at random and mirror half of them. Default: true."""
    num_workers: Annotated[int, Field(ge=0, le=64)] = 2
    """Worker processes that read ahead, of each training process. 0: read in the training process. Default: 2."""


class ParquetArgs(InitArgs):
    """Parquet files with encoded image bytes, and a label or target columns. Classification, regression, multilabel."""

    path: Annotated[str, Field(min_length=1, max_length=1024)]
    """A file, a folder or a URL. No default."""
    val_path: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    """The validation set. Default: null, a share of the training set (val_fraction)."""
    image_column: Column = "image"
    """Column with encoded images. Default: image."""
    label_column: Column = "label"
    """Column with labels, for classification. Default: label."""
    task: WholeSampleTask = "classification"
    """`classification` by label_column, or `regression` or `multilabel` by target_columns. Default: classification."""
    target_columns: Annotated[list[Column], Field(max_length=4096)] = []
    """Columns with the numbers to predict (regression), or with 0 or 1 for each label (multilabel, at least two).
    Default: none."""
    size: Positive = 224
    """Height and width of a sample in pixels; images are cropped to a square and resized. Default: 224."""
    channels: Literal[1, 3] = 3
    """1 for grey images, 3 for RGB. Default: 3."""
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share that is held out for validation if there is no val_path. Default: 0.1."""
    augment: bool = False
    """Crop training images at random and mirror half of them. Default: false."""

    @model_validator(mode="after")
    def _targets_of_the_task(self) -> ParquetArgs:
        least = {"classification": 0, "regression": 1, "multilabel": 2}[self.task]
        if len(self.target_columns) < least:
            raise ValueError(f"task {self.task} needs target_columns, at least {least}; got {self.target_columns}")
        if self.target_columns and self.task == "classification":
            raise ValueError("target_columns are for task regression or multilabel; classification reads label_column")
        return self


class SegmentationFolderArgs(InitArgs):
    """`{root}/images/NAME.png` and `{root}/masks/NAME.png`, a mask's value being its class. Segmentation."""

    root: Annotated[str, Field(min_length=1, max_length=1024)]
    """A folder that every worker reaches, or a URL (s3://, gs://). No default."""
    num_classes: Annotated[int, Field(ge=2, le=256)]
    """Classes in the masks, whose values are 0 to num_classes - 1. No default."""
    size: Positive = 256
    """Height and width of a sample in pixels; images and masks are cropped to a square and resized. Default: 256."""
    channels: Literal[1, 3] = 3
    """1 for grey images, 3 for RGB. Default: 3."""
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share that is held out for validation. Default: 0.1."""
    augment: bool = True
    """Crop training images and their masks at random and mirror half of them. Default: true."""
    num_workers: Annotated[int, Field(ge=0, le=64)] = 2
    """Worker processes that read ahead, of each training process. 0: read in the training process. Default: 2."""


class TransformArgs(InitArgs):
    """A transform of torchvision.transforms.v2, such as `{name: RandomIoUCrop}`."""

    name: Annotated[str, Field(max_length=64, pattern=r"^[A-Z][A-Za-z0-9]*$")]
    """Name of its class. No default."""
    init_args: Annotated[dict[str, JsonValue], Field(max_length=16)] = {}
    """Its arguments: numbers, words and lists of them. Default: none, so that its own defaults hold."""


class CocoArgs(InitArgs):
    """Images in a folder and a COCO JSON file with the boxes, and masks, of their objects. Detection."""

    root: Annotated[str, Field(min_length=1, max_length=1024)]
    """The folder that `file_name` of an image begins in, or a URL (s3://, gs://). No default."""
    annotations: Annotated[str, Field(min_length=1, max_length=1024)]
    """The COCO JSON file, or its URL. Its categories become the labels 1, 2, … by their ids. No default."""
    val_root: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    """The folder of the images of val_annotations. Default: null, root."""
    val_annotations: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    """The COCO JSON file of validation, with the same categories. Default: null, a share of the images is held out
    (val_fraction)."""
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the images that is held out for validation if there is no val_annotations. Default: 0.1."""
    masks: bool = False
    """Read the masks of objects, for Mask R-CNN. Default: false."""
    invalid_boxes: Literal["refuse", "repair"] = "refuse"
    """What happens to boxes that have no area or leave their image by more than a pixel. `refuse` fails the job before
    training and names them. `repair` cuts them to the image, leaves out those that have no area, and says so in the
    job's logs. Default: refuse."""
    augment: bool = True
    """Mirror half of the training images. Default: true."""
    transforms: Annotated[list[TransformArgs], Field(max_length=16)] = []
    """Further changes of training images with their boxes, in this order: classes of torchvision.transforms.v2, such as
    `[{name: RandomPhotometricDistort}, {name: RandomIoUCrop}]`. Default: none."""
    aspect_ratio_grouping: bool = True
    """Put wide images into batches with wide ones, and the others with each other, so that a batch needs less padding.
    The last batches of an epoch may hold both. Default: true."""
    num_workers: Annotated[int, Field(ge=0, le=64)] = 2
    """Worker processes that read ahead, of each training process. 0: read in the training process. Default: 2."""


class DigitScenesArgs(InitArgs):
    """Scenes composed of the real digits on a noisy ground, each pixel labelled by its digit. Segmentation."""

    dims: Literal[2, 3] = 2
    """2 for scenes, 3 for volumes. Default: 2."""
    size: Annotated[int, Field(ge=8, le=4096)] = 32
    """Length of each side in pixels. Default: 32."""
    digits: Annotated[int, Field(ge=1, le=32)] = 4
    """A scene has 1 to this many digits, at random. Default: 4."""
    classes: Annotated[int, Field(ge=1, le=10)] = 10
    """How many of the ten digits occur, from 0 on. Default: 10."""
    scenes: Samples = 256
    """Scenes in the training set. Default: 256."""
    val_scenes: Samples = 64
    """Scenes in the validation set. Default: 64."""
    contrast: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Brightness of the digits; the noise behind them has a standard deviation of 0.25. Default: 1."""
    exposure: Annotated[float, Field(ge=0, le=2)] = 0.0
    """How much brightness and contrast of whole scenes differ: times exp(u), plus v, with u and v uniform in ±exposure.
    Default: 0."""


class SyntheticArgs(InitArgs):
    """Gaussian samples of any shape, for tests and timing. Classification, regression, multilabel."""

    shape: Annotated[list[Positive], Field(min_length=1, max_length=4)] = [3, 32, 32]
    """Shape of a sample, channels first. Default: [3, 32, 32]."""
    num_classes: Annotated[int, Field(ge=2, le=1_000_000)] = 10
    """Classes, or labels of multilabel. Default: 10."""
    task: WholeSampleTask = "classification"
    """`classification` of clusters, `regression` of weighted means of a sample's values, or `multilabel` by their
    signs. Default: classification."""
    numbers: Positive = 1
    """Numbers to predict for a sample, for regression. Default: 1."""
    samples: Samples = 1024
    """Samples in the training set. Default: 1,024."""
    val_samples: Samples = 256
    """Samples in the validation set. Default: 256."""

    @model_validator(mode="after")
    def _of_a_size(self) -> SyntheticArgs:
        if (size := math.prod(self.shape)) > LARGEST_SAMPLE:
            raise ValueError(f"shape must not have more than {LARGEST_SAMPLE} values, got {size}; take a smaller one")

        return self


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
    patch: Annotated[list[Positive], Field(min_length=3, max_length=3)] = [96, 96, 96]
    """Sides of a training sample in voxels, and of the windows that whole volumes are run by. Default: [96, 96, 96]."""
    overlap: Annotated[float, Field(ge=0, le=0.95)] = 0.5
    """Share of a window's side that its neighbour covers too, at least. Default: 0.5."""
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
    """Classes in the masks, whose values are 0 (the background) to num_classes - 1. No default."""
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


DATASETS: dict[str, type[InitArgs]] = {
    "digits": DigitsArgs,
    "image_folder": ImageFolderArgs,
    "parquet": ParquetArgs,
    "segmentation_folder": SegmentationFolderArgs,
    "coco": CocoArgs,
    "digit_scenes": DigitScenesArgs,
    "nifti": NiftiArgs,
    "synthetic": SyntheticArgs,
}
