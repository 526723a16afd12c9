"""Arguments of images with boxes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue

from syncnorm.trainer.contract.catalog.init_args import InitArgs


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
