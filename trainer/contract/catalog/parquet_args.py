"""Arguments of data in Parquet files."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from syncnorm.trainer.contract.catalog.init_args import Column, InitArgs, Positive, WholeSampleTask


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
