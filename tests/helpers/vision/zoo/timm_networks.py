"""Networks of timm: those that are small, of as many families as there are."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from tests.helpers.vision.zoo.architecture import Architecture, on_images

NAMES = (
    "test_byobnet",
    "test_coatnet",
    "test_convnext",
    "test_convnext2",
    "test_efficientnet",
    "test_efficientnet_evos",
    "test_efficientnet_gn",
    "test_efficientnet_ln",
    "test_mambaout",
    "test_maxvit",
    "test_nfnet",
    "test_resnet",
    "test_vit",
    "resnet10t",
    "resnetv2_18",
    "mobilenetv2_035",
    "mobilenetv3_small_050",
    "mobilenetv4_conv_small_035",
    "lcnet_035",
    "regnetx_002",
    "regnety_002",
    "ghostnet_050",
    "mixnet_s",
    "rexnet_100",
    "repvgg_a0",
    "dla46_c",
    "ese_vovnet19b_slim_dw",
    "repghostnet_050",
    "edgenext_xx_small",
    "mobilevit_xxs",
    "mobilevitv2_050",
    "fastvit_t8",
    "starnet_s1",
    "repvit_m0_9",
    "shvit_s1",
    "hgnetv2_b0",
    "efficientvit_b0",
    "inception_next_atto",
    "fasternet_t0",
    "convnext_atto",
    "pvt_v2_b0",
    "skresnet18",
    "cs3darknet_focus_s",
)
FIXED_SIZE = {"test_coatnet": 160, "test_maxvit": 160, "test_vit": 160}


def architectures() -> list[Architecture]:
    small = [Architecture("timm", name, partial(_timm, name), on_images(FIXED_SIZE.get(name, 64))) for name in NAMES]
    return [
        *small,
        Architecture("timm", "resnet10t, groups", partial(_timm, "resnet10t", norm_layer="groupnorm1"), on_images()),
        *(
            Architecture(
                "timm", f"test_efficientnet, {name}", partial(_timm, "test_efficientnet", norm_layer=name), on_images()
            )
            for name in ("evonormb0", "frn", "frntlu")
        ),
        Architecture("timm", "levit_128s", partial(_timm, "levit_128s", img_size=64), on_images()),
        Architecture("timm", "efficientvit_m0", partial(_timm, "efficientvit_m0", img_size=64), on_images()),
        Architecture("timm", "coat_lite_tiny", partial(_timm, "coat_lite_tiny", img_size=64), on_images()),
        Architecture("timm", "xcit_nano", partial(_timm, "xcit_nano_12_p16_224", img_size=64), on_images()),
        Architecture("timm", "mobileone, small", _mobileone, on_images()),
        Architecture("timm", "densenet, small", partial(_timm, "densenet121", block_config=(2, 2)), on_images()),
        Architecture("timm", "resnet, features", partial(_timm, "resnet10t", features_only=True), on_images()),
    ]


def _timm(name: str, **more: Any) -> nn.Module:
    import timm

    if not more.get("features_only"):
        more["num_classes"] = 3
    made: nn.Module = timm.create_model(name, **more)
    return made


def _mobileone() -> nn.Module:
    from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg

    blocks = [
        [
            ByoBlockCfg(type="one", d=1, c=before, gs=1, block_kwargs={"num_conv_branches": 4}),
            ByoBlockCfg(type="one", d=1, c=after, gs=0, block_kwargs={"num_conv_branches": 4, "kernel_size": 1}),
        ]
        for before, after in ((16, 16), (16, 32))
    ]
    made: nn.Module = ByobNet(ByoModelCfg(blocks=blocks, stem_type="one", stem_chs=16), num_classes=3)
    return made
