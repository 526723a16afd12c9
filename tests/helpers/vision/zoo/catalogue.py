"""Every architecture of the zoo whose library is installed."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

from tests.helpers.vision.zoo.architecture import Architecture

# Package -> the module here that has its networks.
LIBRARIES = {
    "torchvision": "torchvision_networks",
    "timm": "timm_networks",
    "segmentation_models_pytorch": "segmentation_networks",
    "monai": "monai_networks",
    "transformers": "transformers_networks",
    "ultralytics": "ultralytics_blocks",
}


def catalogue() -> list[Architecture]:
    installed = [module for package, module in LIBRARIES.items() if find_spec(package) is not None]
    return [one for module in installed for one in import_module(f"tests.helpers.vision.zoo.{module}").architectures()]
