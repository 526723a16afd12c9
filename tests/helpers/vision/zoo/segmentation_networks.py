"""Networks of segmentation-models-pytorch."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from tests.helpers.vision.zoo.architecture import Architecture, on_images

_SMALL = {"decoder_channels": (32, 16, 16, 8, 8)}
NETWORKS: dict[str, dict[str, Any]] = {
    "Unet": _SMALL,
    "UnetPlusPlus": _SMALL,
    "FPN": {"decoder_pyramid_channels": 32, "decoder_segmentation_channels": 32},
    "PSPNet": {"psp_out_channels": 16},
    "DeepLabV3": {"decoder_channels": 16},
    "DeepLabV3Plus": {"decoder_channels": 16},
    "Linknet": {},
    "MAnet": {"encoder_depth": 3, "decoder_channels": (32, 16, 8), "decoder_pab_channels": 8},
    "PAN": {"decoder_channels": 8},
    "UPerNet": {"decoder_channels": 16},
    "Segformer": {"decoder_segmentation_channels": 16},
}


def architectures() -> list[Architecture]:
    return [
        Architecture(
            "segmentation-models-pytorch", name, partial(_network, name, more), on_images(128 if name == "PAN" else 64)
        )
        for name, more in NETWORKS.items()
    ]


def _network(name: str, more: dict[str, Any]) -> nn.Module:
    import segmentation_models_pytorch as smp

    made: nn.Module = getattr(smp, name)("mobilenet_v2", encoder_weights=None, classes=2, **more)
    return made
