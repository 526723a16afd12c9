"""Networks of torchvision."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from tests.helpers.vision.zoo.architecture import Architecture, Heads, on_images


def architectures() -> list[Architecture]:
    from torchvision import models
    from torchvision.models import detection, efficientnet, resnet, segmentation, vgg
    from torchvision.models.vision_transformer import VisionTransformer

    from tests.helpers.vision import tiny_detectors

    def add(name: str, build: Callable[[], nn.Module], shapes: Any = None) -> None:
        found.append(Architecture("torchvision", name, build, shapes or on_images()))

    found: list[Architecture] = []
    one = [1, 1, 1, 1]
    bare: dict[str, Any] = {"weights": None, "num_classes": 3}
    backbone: dict[str, Any] = {"weights": None, "weights_backbone": None, "num_classes": 3}
    add("ResNet", partial(resnet.ResNet, resnet.BasicBlock, one, 3))
    add("ResNet, bottlenecks", partial(resnet.ResNet, resnet.Bottleneck, one, 3, width_per_group=16))
    add("ResNeXt", partial(resnet.ResNet, resnet.Bottleneck, one, 3, groups=4, width_per_group=4))
    add("MobileNetV2", partial(models.mobilenet_v2, width_mult=0.25, **bare))
    add("MobileNetV3", partial(models.mobilenet_v3_small, width_mult=0.5, **bare))
    add("MNASNet", partial(models.mnasnet0_5, **bare))
    add("EfficientNet", partial(models.efficientnet_b0, **bare))
    add("EfficientNetV2", partial(_efficientnet_v2, efficientnet))
    add("ShuffleNetV2", partial(models.shufflenet_v2_x0_5, **bare))
    add("SqueezeNet", partial(models.squeezenet1_1, **bare))
    add("DenseNet", partial(models.DenseNet, 8, (2, 2, 2, 2), 16, num_classes=3))
    add("GoogLeNet", partial(models.googlenet, aux_logits=False, init_weights=False, **bare))
    add("RegNetX", partial(models.regnet_x_400mf, **bare))
    add("RegNetY", partial(models.regnet_y_400mf, **bare))
    add("VGG", lambda: nn.Sequential(vgg.make_layers([8, "M", 16, "M", 16], batch_norm=True)))
    add("ConvNeXt", partial(_convnext, models))
    add("VisionTransformer", partial(VisionTransformer, 32, 8, 2, 2, 32, 64, num_classes=3), on_images(32))
    add("SwinTransformer", partial(models.SwinTransformer, [4, 4], 16, [1, 1], [2, 2], [4, 4], num_classes=3))
    add("MaxViT", partial(models.MaxVit, (64, 64), 16, 2, [16, 16], [1, 1], 16, 0.0, num_classes=3))
    add("R3D", partial(_video, "r3d_18"), ((2, 3, 4, 32, 32),))
    add("MC3", partial(_video, "mc3_18"), ((2, 3, 4, 32, 32),))
    add("R(2+1)D", partial(_video, "r2plus1d_18"), ((2, 3, 4, 32, 32),))
    add("LR-ASPP", partial(segmentation.lraspp_mobilenet_v3_large, **backbone))
    add("DeepLabV3", partial(segmentation.deeplabv3_mobilenet_v3_large, **backbone))
    add("FCN", partial(_fcn, segmentation, resnet))
    add("Faster R-CNN, heads", lambda: Heads(tiny_detectors.faster_rcnn(3)))
    add("RetinaNet, heads", lambda: Heads(tiny_detectors.retinanet(3)))
    add("FCOS, heads", lambda: Heads(tiny_detectors.fcos(3)))
    add("SSDlite, backbone", partial(_ssdlite, detection), on_images(128))
    return found


def _efficientnet_v2(efficientnet: Any) -> nn.Module:
    blocks = [
        efficientnet.FusedMBConvConfig(1, 3, 1, 8, 8, 1),
        efficientnet.FusedMBConvConfig(4, 3, 2, 8, 16, 1),
        efficientnet.MBConvConfig(4, 3, 2, 16, 24, 2),
    ]
    made: nn.Module = efficientnet.EfficientNet(blocks, dropout=0.1, num_classes=3, last_channel=32)
    return made


def _convnext(models: Any) -> nn.Module:
    from torchvision.models.convnext import CNBlockConfig

    made: nn.Module = models.ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)], num_classes=3)
    return made


def _video(name: str) -> nn.Module:
    import torchvision.models.video.resnet as parts

    conv = {"r3d_18": parts.Conv3DSimple, "r2plus1d_18": parts.Conv2Plus1D}.get(name)
    makers = [conv] * 4 if conv else [parts.Conv3DSimple] + [parts.Conv3DNoTemporal] * 3
    stem = parts.R2Plus1dStem if name == "r2plus1d_18" else parts.BasicStem
    whole = parts.VideoResNet(parts.BasicBlock, makers, [1, 1, 1, 1], stem, num_classes=3)
    return nn.Sequential(whole.stem, whole.layer1, whole.layer2)  # the others have 512 channels


def _fcn(segmentation: Any, resnet: Any) -> nn.Module:
    from torchvision.models._utils import IntermediateLayerGetter

    body = IntermediateLayerGetter(resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1]), {"layer2": "out"})
    made: nn.Module = segmentation.FCN(body, segmentation.fcn.FCNHead(128, 3))
    return made


def _ssdlite(detection: Any) -> nn.Module:
    whole = detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3)
    backbone: nn.Module = whole.backbone
    return backbone
