"""Built-in models and data sets: names and arguments. Free of torch, so that the service can check a spec."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


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


DATASETS: dict[str, type[InitArgs]] = {
    "digits": DigitsArgs,
    "image_folder": ImageFolderArgs,
    "parquet": ParquetArgs,
    "segmentation_folder": SegmentationFolderArgs,
    "digit_scenes": DigitScenesArgs,
    "synthetic": SyntheticArgs,
}
