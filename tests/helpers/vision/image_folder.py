"""Images in folders by class, as torchvision's ImageFolder reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def write_folder(root: Path, classes: int = 10) -> None:
    """Two training images and one for validation of each class, in folders as ImageFolder reads them."""
    for split, count in (("train", 2), ("val", 1)):
        for label in range(classes):
            folder = root / split / f"class_{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = np.random.default_rng(100 * label + number).random((32, 32, 3)) * 255
                Image.fromarray(pixels.astype("uint8")).save(folder / f"{number}.png")
