"""From encoded images to tensors: decoding, cropping, normalizing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif"})
Box = tuple[float, float, float, float]

# Of ImageNet, as everybody uses them; grey: of its luminance, as in timm.
_MEAN = {3: np.array([0.485, 0.456, 0.406], np.float32), 1: np.array([0.449], np.float32)}
_STD = {3: np.array([0.229, 0.224, 0.225], np.float32), 1: np.array([0.226], np.float32)}
_MODES = {3: "RGB", 1: "L"}


@dataclass(frozen=True)
class ImageReader:
    """Makes float32 (channels, size, size) of encoded images, less ImageNet's mean, over its standard deviation."""

    size: int
    channels: int

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.channels, self.size, self.size)

    def classify(self, image: Image.Image, rng: np.random.Generator | None) -> Tensor:
        """The largest centred square; or, where `rng` is given, a random crop, mirrored half of the time."""
        if rng is None:
            return self.tensor(image, centre_square(*image.size), mirror=False)
        return self.tensor(image, random_box(*image.size, rng, least_area=0.08), mirror=bool(rng.integers(2)))

    def tensor(self, image: Image.Image, box: Box, *, mirror: bool) -> Tensor:
        resized = image.convert(_MODES[self.channels]).resize((self.size, self.size), Image.Resampling.BILINEAR, box)
        x_HWC = np.asarray(resized, dtype=np.float32).reshape(self.size, self.size, self.channels) / 255
        x_HWC = (x_HWC - _MEAN[self.channels]) / _STD[self.channels]
        x_HWC = x_HWC[:, ::-1] if mirror else x_HWC
        return torch.from_numpy(np.ascontiguousarray(x_HWC.transpose(2, 0, 1)))

    def mask(self, mask: Image.Image, box: Box, *, mirror: bool) -> Tensor:
        """A mask's values as int64 (size, size), cut as its image; values are picked, not mixed."""
        values = np.asarray(mask.resize((self.size, self.size), Image.Resampling.NEAREST, box)).astype(np.int64)
        return torch.from_numpy(np.ascontiguousarray(values[:, ::-1] if mirror else values))


def decode(where: str, name: str, content: bytes) -> Image.Image:
    """Raises: ValueError naming `where` and the file if `content` is no image."""
    try:
        image = Image.open(BytesIO(content))
        image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{where}: {name} is not an image that can be read ({error}). Remove or replace it."
        ) from error
    return image


def centre_square(width: int, height: int) -> Box:
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return (left, top, left + side, top + side)


def random_box(width: int, height: int, rng: np.random.Generator, *, least_area: float) -> Box:
    """A box of least_area to all of the area and of aspect 3/4 to 4/3; the centred square after ten that do not fit.

    See: Szegedy et al. 2014, arXiv:1409.4842, sec. 6.
    """
    for _ in range(10):
        area = width * height * rng.uniform(least_area, 1)
        aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = math.sqrt(area * aspect), math.sqrt(area / aspect)
        if w <= width and h <= height:
            left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
            return (left, top, left + w, top + h)
    return centre_square(width, height)
