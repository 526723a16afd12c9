"""What is wrong with one box or one mask of a COCO file. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

Box = tuple[float, float, float, float]
TOLERANCE_PX = 1.0
"""How far a box may reach out of its image: COCO's own files round by up to a pixel."""
FEWEST_BOXES = 5
"""With fewer boxes nobody can tell which format they have."""


@dataclass(frozen=True)
class BoxProblem:
    """text: what is wrong. is_repairable: whether it can be cut or left out. box: what is left of it; None: nothing."""

    text: str
    is_repairable: bool = False
    box: Box | None = None


def checked_box(bbox: Any, size: tuple[int, int]) -> Box | BoxProblem:
    """(left, top, right, bottom) of COCO's (left, top, width, height), cut to an image of `size` (width, height)."""
    if not _is_numbers(bbox, 4):
        return BoxProblem(f"`bbox` must be four finite numbers [left, top, width, height], got {bbox!r}")
    left, top, width, height = map(float, bbox)
    if width <= 0 or height <= 0:
        return BoxProblem(f"the box {bbox} has no area", is_repairable=True)
    right, bottom = left + width, top + height
    cut = (max(left, 0.0), max(top, 0.0), min(right, float(size[0])), min(bottom, float(size[1])))
    has_area = np.float32(cut[0]) < np.float32(cut[2]) and np.float32(cut[1]) < np.float32(cut[3])
    beyond = max(-left, -top, right - size[0], bottom - size[1])
    if beyond > TOLERANCE_PX or not has_area:
        text = f"the box {bbox} lies outside of the image" if not has_area else f"the box {bbox} leaves the image"
        return BoxProblem(text, is_repairable=True, box=cut if has_area else None)
    return cut


def are_corners(boxes: Iterable[tuple[Any, tuple[int, int]]]) -> bool:
    """Whether boxes, each with the (width, height) of its image, are [left, top, right, bottom] instead of COCO's
    format: read so, every one lies in its image, and as COCO's at least a third leaves it."""
    found = [(*map(float, bbox), *size) for bbox, size in boxes if _is_numbers(bbox, 4)]
    fit = [
        0 <= x <= right <= width + TOLERANCE_PX and 0 <= y <= bottom <= height + TOLERANCE_PX
        for x, y, right, bottom, width, height in found
    ]
    leave = [max(x + right - width, y + bottom - height) > TOLERANCE_PX for x, y, right, bottom, width, height in found]
    return len(found) >= FEWEST_BOXES and all(fit) and 3 * sum(leave) >= len(found)


def mask_problem(segmentation: Any, size: tuple[int, int]) -> str | None:
    """Why it is no mask of an image of `size` (width, height): polygons, or a run-length encoding."""
    if isinstance(segmentation, dict):
        wanted = [size[1], size[0]]
        if segmentation.get("size") != wanted:
            return f"the mask must be as large as its image, height and width {wanted}, got {segmentation.get('size')}"
        return None if isinstance(segmentation.get("counts"), list | str) else "the mask has no `counts`"
    if not segmentation:
        return "it has no mask in `segmentation`; set masks: false to train on boxes alone"
    if not isinstance(segmentation, list) or not all(
        isinstance(polygon, list) and len(polygon) >= 6 and _is_numbers(polygon, len(polygon) // 2 * 2)
        for polygon in segmentation
    ):
        return (
            "`segmentation` must be polygons of three points or more, [[x, y, x, y, x, y], …], or a run-length encoding"
        )
    return None


def _is_numbers(value: Any, count: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) == count
        and all(isinstance(one, int | float) and not isinstance(one, bool) and math.isfinite(one) for one in value)
    )
