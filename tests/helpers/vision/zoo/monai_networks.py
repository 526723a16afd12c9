"""Networks of MONAI, in two and three dimensions."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from tests.helpers.vision.zoo.architecture import Architecture, on_images, on_volumes

_IN_OUT: dict[str, Any] = {"in_channels": 1, "out_channels": 2}
_VOLUME: dict[str, Any] = {"spatial_dims": 3, **_IN_OUT}
_SIZES: dict[str, Any] = {"channels": (4, 8, 16), "strides": (2, 2)}
_KERNELS: dict[str, Any] = {"kernel_size": [3, 3, 3], "strides": [1, 2, 2], "upsample_kernel_size": [2, 2]}
PICTURE, VOLUME, SMALL = on_images(32, 1), on_volumes(32), on_volumes(16)
NETWORKS: dict[str, tuple[str, dict[str, Any], tuple[tuple[int, ...], ...]]] = {
    "UNet, 2-D": ("UNet", {"spatial_dims": 2, **_IN_OUT, **_SIZES, "num_res_units": 1, "norm": "batch"}, PICTURE),
    "UNet, 3-D": ("UNet", {**_VOLUME, **_SIZES, "norm": "batch", "dropout": 0.1}, SMALL),
    "UNet, instance": ("UNet", {**_VOLUME, **_SIZES, "num_res_units": 2, "norm": "instance"}, SMALL),
    "BasicUNet": ("BasicUNet", {**_VOLUME, "features": (4, 4, 8, 8, 16, 4)}, VOLUME),
    "BasicUNetPlusPlus": ("BasicUNetPlusPlus", {**_VOLUME, "features": (4, 4, 8, 8, 16, 4)}, VOLUME),
    "AttentionUnet": ("AttentionUnet", {**_VOLUME, **_SIZES}, SMALL),
    "DynUNet": ("DynUNet", {**_VOLUME, **_KERNELS, "filters": [4, 8, 16]}, SMALL),
    "DynUNet, batch": (
        "DynUNet",
        {**_VOLUME, **_KERNELS, "filters": [4, 8, 16], "norm_name": "batch", "res_block": True},
        SMALL,
    ),
    "SegResNet": ("SegResNet", {"init_filters": 8}, SMALL),
    "SegResNet, batch": ("SegResNet", {"init_filters": 8, "norm": "batch"}, SMALL),
    "SegResNetDS": ("SegResNetDS", {"spatial_dims": 3, "init_filters": 4, "blocks_down": (1, 1, 1)}, SMALL),
    "SegResNetVAE": ("SegResNetVAE", {"input_image_size": (16, 16, 16), "init_filters": 8}, SMALL),
    "HighResNet": ("HighResNet", {**_VOLUME, "norm_type": "batch"}, SMALL),
    "DenseNet": ("DenseNet", {**_VOLUME, "init_features": 8, "growth_rate": 4, "block_config": (2, 2)}, VOLUME),
    "ResNet": (
        "ResNet",
        {"block": "basic", "layers": [1, 1, 1, 1], "block_inplanes": [4, 8, 8, 16], "n_input_channels": 1},
        VOLUME,
    ),
    "EfficientNetBN": ("EfficientNetBN", {"model_name": "efficientnet-b0", "pretrained": False}, on_images(64)),
    "FlexibleUNet": (
        "FlexibleUNet",
        {**_IN_OUT, "backbone": "efficientnet-b0", "pretrained": False, "decoder_channels": (32, 16, 16, 8, 8)},
        on_images(64, 1),
    ),
    "UNETR": (
        "UNETR",
        {**_IN_OUT, "img_size": 32, "feature_size": 4, "hidden_size": 32, "mlp_dim": 32, "num_heads": 2},
        VOLUME,
    ),
    "AutoEncoder": ("AutoEncoder", {**_VOLUME, "channels": (4, 8), "strides": (2, 2)}, SMALL),
    "VarAutoEncoder": (
        "VarAutoEncoder",
        {"spatial_dims": 2, "in_shape": (1, 32, 32), "out_channels": 1, "latent_size": 4, "channels": (4, 8),
         "strides": (2, 2)},
        PICTURE,
    ),
    "Discriminator": (
        "Discriminator",
        {"in_shape": (1, 32, 32), "channels": (4, 8), "strides": (2, 2), "num_res_units": 1},
        PICTURE,
    ),
    "MedNeXt": ("MedNeXt", {"spatial_dims": 3, "init_filters": 4}, VOLUME),
    "LocalNet": (
        "LocalNet",
        {**_VOLUME, "num_channel_initial": 4, "extract_levels": (0, 1, 2)},
        SMALL,
    ),
    "RegUNet": ("RegUNet", {**_VOLUME, "num_channel_initial": 4, "depth": 2}, SMALL),
    "VoxelMorphUNet": (
        "VoxelMorphUNet",
        {"spatial_dims": 3, "in_channels": 2, "unet_out_channels": 8, "channels": (4, 8), "final_conv_channels": (8,)},
        on_volumes(16, 2),
    ),
    "AutoencoderKL": (
        "AutoencoderKL",
        {**_VOLUME, "channels": (8, 8), "num_res_blocks": (1, 1), "attention_levels": (False, True),
         "latent_channels": 4, "norm_num_groups": 4},
        SMALL,
    ),
    "PatchDiscriminator": ("PatchDiscriminator", {"spatial_dims": 2, "channels": 8, "in_channels": 1}, PICTURE),
}  # fmt: skip


def architectures() -> list[Architecture]:
    found = [
        Architecture("MONAI", name, partial(_network, kind, arguments), shapes)
        for name, (kind, arguments, shapes) in NETWORKS.items()
    ]
    return [*found, Architecture("MONAI", "VNet, encoder", _encoder_of_vnet, SMALL)]


def _network(name: str, arguments: dict[str, Any]) -> nn.Module:
    from monai.networks import nets

    made: nn.Module = getattr(nets, name)(**arguments)
    return made


def _encoder_of_vnet() -> nn.Module:
    whole: Any = _network("VNet", _IN_OUT)
    return nn.Sequential(whole.in_tr, whole.down_tr32, whole.down_tr64)  # the rest has 256 channels
