"""The data of a job: built in, or a LightningDataModule of the user."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from syncnorm.trainer.contract.catalog.names import DATASETS
from syncnorm.trainer.contract.spec import DataSpec
from syncnorm.trainer.data.coco.labelled_images import coco
from syncnorm.trainer.data.digit_scenes import digit_scenes
from syncnorm.trainer.data.digits import digits
from syncnorm.trainer.data.image_folder import image_folder
from syncnorm.trainer.data.info import Data, DataInfo, Source
from syncnorm.trainer.data.parquet import parquet
from syncnorm.trainer.data.segmentation_folder import segmentation_folder
from syncnorm.trainer.data.synthetic import synthetic
from syncnorm.trainer.data.volumes.dataset import nifti

__all__ = ["Data", "DataInfo", "Source", "build_data"]


def build_data(data: DataSpec, seed: int) -> Data:
    """The samples that `data` names. `seed` decides which samples are held out, and what generated ones look like.

    Raises: ValueError naming the spec path; FileNotFoundError (MissingDataError) where a folder or file is not there.
    """
    if data.class_path is not None:
        from syncnorm.trainer.data.user.datamodule import by_class_path  # Lightning is slow to import

        return by_class_path(data.class_path, data.init_args)
    if data.name not in DATASETS:
        raise ValueError(f"data.name must be one of {', '.join(sorted(DATASETS))}; got {data.name!r}")
    return _BUILDERS[data.name](DATASETS[data.name].model_validate(data.init_args), seed)


_BUILDERS: dict[str, Callable[[Any, int], Data]] = {
    "digits": digits,
    "image_folder": image_folder,
    "parquet": parquet,
    "segmentation_folder": segmentation_folder,
    "coco": coco,
    "digit_scenes": digit_scenes,
    "nifti": nifti,
    "synthetic": synthetic,
}
