"""torchvision's detectors with a small backbone, and batch normalization in backbone and heads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads
from torchvision.models.detection.retinanet import RetinaNetHead

SIZES = {"min_size": 64, "max_size": 96}


class Backbone(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.out_channels = width
        self.body = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(c, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
                for c in (3, width)
            )
        )

    def forward(self, x: Tensor) -> Any:
        return {"0": self.body(x)}


def _anchors() -> AnchorGenerator:
    return AnchorGenerator(((16, 24),), ((0.5, 1.0, 2.0),))


def _rcnn(build: Any, num_classes: int, **more: Any) -> nn.Module:
    head = FastRCNNConvFCHead((16, 7, 7), [16], [32], norm_layer=nn.BatchNorm2d)
    samples = {"box_batch_size_per_image": 16, "rpn_batch_size_per_image": 32, "rpn_post_nms_top_n_train": 50}
    made: nn.Module = build(
        Backbone(),
        num_classes=None,
        rpn_anchor_generator=_anchors(),
        box_head=head,
        box_predictor=detection.faster_rcnn.FastRCNNPredictor(32, num_classes),
        **{**SIZES, **samples, **more},
    )
    return made


def faster_rcnn(num_classes: int, min_size: int | list[int] = 64) -> nn.Module:
    return _rcnn(detection.FasterRCNN, num_classes, min_size=min_size)


def mask_rcnn(num_classes: int) -> nn.Module:
    predictor = detection.mask_rcnn.MaskRCNNPredictor(16, 16, num_classes)
    head = MaskRCNNHeads(16, [16], 1, norm_layer=nn.BatchNorm2d)
    return _rcnn(detection.MaskRCNN, num_classes, mask_head=head, mask_predictor=predictor)


def retinanet(num_classes: int) -> nn.Module:
    head = RetinaNetHead(16, 6, num_classes, norm_layer=nn.BatchNorm2d)
    made: nn.Module = detection.RetinaNet(Backbone(), num_classes, anchor_generator=_anchors(), head=head, **SIZES)
    return made


def fcos(num_classes: int) -> nn.Module:
    anchors = AnchorGenerator(((8,),), ((1.0,),))
    made: nn.Module = detection.FCOS(Backbone(32), num_classes, anchor_generator=anchors, **SIZES)
    return made


def ssd(num_classes: int) -> nn.Module:
    boxes = DefaultBoxGenerator([[2]], scales=[0.2, 0.4])
    made: nn.Module = detection.ssd.SSD(_SSDBackbone(), boxes, (64, 64), num_classes)
    return made


class _SSDBackbone(Backbone):
    def __init__(self) -> None:
        super().__init__()
        self.out_channels = [16]  # type: ignore[assignment]  # as SSD takes it


class NotADetector(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, num_classes, 1)

    def forward(self, images: list[Tensor], targets: Any = None) -> Any:
        return torch.stack([self.layer(image).mean((1, 2)) for image in images])


class OwnDetector(nn.Module):
    """Of the form of torchvision's detectors, with a loss of its own: one box in the middle of each image."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.body = Backbone().body
        self.head = nn.Linear(16, num_classes)

    def forward(self, images: list[Tensor], targets: Any = None) -> Any:
        scores = self.head(torch.cat([self.body(image[None]).mean((2, 3)) for image in images]))
        if self.training:
            counts = torch.tensor([float(len(target["labels"])) for target in targets], dtype=scores.dtype)
            return {"count": (scores[:, 1] - counts).square().mean()}
        middle = [torch.tensor([[0.25, 0.25, 0.75, 0.75]]) * image.shape[-1] for image in images]
        return [
            {"boxes": box, "scores": score[1:].sigmoid()[:1], "labels": torch.ones(1, dtype=torch.int64)}
            for box, score in zip(middle, scores, strict=True)
        ]


def on_a_pyramid(num_classes: int) -> nn.Module:
    """Faster R-CNN with several levels of features, as torchvision builds it."""
    fpn = detection.backbone_utils.resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5
    )
    made: nn.Module = detection.FasterRCNN(fpn, num_classes, **SIZES)
    return made
