"""Arguments of data that consists of images."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from syncnorm.trainer.contract.catalog.init_args import InitArgs, Positive, Samples


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
