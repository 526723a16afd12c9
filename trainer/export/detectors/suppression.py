"""Non-maximum suppression of several classes in a form that torch.export takes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_BOXES = "torchvision.ops.boxes"


@contextmanager
def exportable_suppression() -> Iterator[None]:
    """Within the block, torchvision's batched_nms does not branch on the number of boxes (torchvision 0.29), which
    torch.export can't take. Nothing happens where torchvision is not in use."""
    module: Any = sys.modules.get(_BOXES)
    if module is None:
        yield
        return
    before = module.batched_nms

    def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Any:
        # Boxes of each class are moved apart by more than the greatest coordinate, so that they never overlap.
        farthest = torch.cat([boxes.flatten(), boxes.new_zeros(1)]).max()
        return module.nms(boxes + (idxs.to(boxes) * (farthest + 1))[:, None], scores, iou_threshold)

    module.batched_nms = batched_nms
    try:
        yield
    finally:
        module.batched_nms = before
