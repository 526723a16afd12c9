"""Arguments of data that is drawn at random."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field, model_validator

from syncnorm.trainer.contract.catalog.init_args import LARGEST_SAMPLE, InitArgs, Positive, Samples, WholeSampleTask


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
