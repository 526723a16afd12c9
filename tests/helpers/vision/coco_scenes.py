"""Small scenes of bright rectangles on a noisy ground, as images with a COCO JSON file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CATEGORIES = [{"id": 7, "name": "wide"}, {"id": 3, "name": "tall"}]
"""Ids with gaps and out of order: the labels are 2 and 1."""


def write_scenes(root: Path, count: int, *, seed: int = 0, sides: tuple[int, int] = (48, 80)) -> dict[str, Any]:
    """`root/images` and `root/annotations.json`; what is in the file. Every fifth image is empty, every seventh has a
    crowd besides."""
    rng = np.random.default_rng(seed)
    document: dict[str, Any] = {"images": [], "annotations": [], "categories": [dict(one) for one in CATEGORIES]}
    (root / "images").mkdir(parents=True, exist_ok=True)
    for number in range(count):
        width, height = (int(side) for side in rng.integers(*sides, 2))
        pixels = rng.integers(0, 60, (height, width, 3))
        image = {"id": 100 + number, "file_name": f"{number:03}.png", "width": width, "height": height}
        document["images"].append(image)
        for _ in range(0 if number % 5 == 4 else int(rng.integers(1, 4))):
            document["annotations"].append(_object(document, image, pixels, rng))
        if number % 7 == 6:
            document["annotations"].append(_object(document, image, pixels, rng) | {"iscrowd": 1})
        Image.fromarray(pixels.astype(np.uint8)).save(root / "images" / image["file_name"])
    (root / "annotations.json").write_text(json.dumps(document))
    return document


def _object(document: dict[str, Any], image: dict[str, Any], pixels: Any, rng: np.random.Generator) -> dict[str, Any]:
    is_wide = bool(rng.integers(2))
    w, h = (22, 11) if is_wide else (11, 22)
    x, y = int(rng.integers(0, image["width"] - w)), int(rng.integers(0, image["height"] - h))
    pixels[y : y + h, x : x + w] = rng.integers(160, 255, 3)
    return {
        "id": len(document["annotations"]),
        "image_id": image["id"],
        "category_id": 7 if is_wide else 3,
        "bbox": [x, y, w, h],
        "area": w * h,
        "iscrowd": 0,
        "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
    }
