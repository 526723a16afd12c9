"""Pictures of validation images with the true boxes and those that a detector found."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from syncnorm.trainer.data.info import Category, Data

MOST = 6
LEAST_SCORE = 0.3
SHORTEST_SIDE = 480
_TRUE, _FOUND = (40, 200, 80), (255, 80, 60)


@torch.no_grad()
def drawn_predictions(network: nn.Module, data: Data) -> Iterator[tuple[str, bytes]]:
    """PNG files by name, of the first validation images with objects, or else the first ones. network: in eval mode."""
    device = next(network.parameters()).device
    for image, target in _chosen(data):
        (found,) = network([image.to(device)])
        yield f"image_{target['image_id']}.png", _png(image, target["boxes"], found, data.info.categories)


def _chosen(data: Data) -> list[tuple[Tensor, Mapping[str, Any]]]:
    first = [data.val[index] for index in range(min(MOST * 3, len(data.val)))]  # type: ignore[arg-type]
    return sorted(first, key=lambda sample: not len(sample[1]["boxes"]))[:MOST]


def _png(image: Tensor, true: Tensor, found: Mapping[str, Tensor], categories: Sequence[Category]) -> bytes:
    """True boxes are green, found ones red with class and score; small images are enlarged."""
    pixels = (image.clamp(0, 1) * 255).byte().permute(1, 2, 0).cpu().numpy()
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    scale = max(1, round(SHORTEST_SIDE / min(picture.size)))
    picture = picture.resize((picture.width * scale, picture.height * scale))
    draw = ImageDraw.Draw(picture)
    for box in true.tolist():
        draw.rectangle([scale * side for side in box], outline=_TRUE, width=2)
    for box, label, score in zip(*(found[name].tolist() for name in ("boxes", "labels", "scores")), strict=True):
        if score >= LEAST_SCORE:
            draw.rectangle([scale * side for side in box], outline=_FOUND, width=2)
            name = categories[label - 1].name if 0 < label <= len(categories) else str(label)
            draw.text((scale * box[0] + 3, scale * box[1] + 2), f"{name} {score:.2f}", fill=_FOUND)
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()
