"""The names of the built-in models and data sets, with what their arguments may be."""

from __future__ import annotations

from syncnorm.trainer.contract.catalog.detection_args import CocoArgs
from syncnorm.trainer.contract.catalog.image_args import (
    DigitsArgs,
    DigitScenesArgs,
    ImageFolderArgs,
    SegmentationFolderArgs,
)
from syncnorm.trainer.contract.catalog.init_args import InitArgs
from syncnorm.trainer.contract.catalog.model_args import CnnArgs, LstmArgs, MlpArgs, ResNetArgs, UnetArgs, VggArgs
from syncnorm.trainer.contract.catalog.parquet_args import ParquetArgs
from syncnorm.trainer.contract.catalog.synthetic_args import SyntheticArgs
from syncnorm.trainer.contract.catalog.volume_args import NiftiArgs

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
