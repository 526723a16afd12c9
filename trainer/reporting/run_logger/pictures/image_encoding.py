"""Pictures from tensors, arrays, figures and files, as the bytes of a file."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[Any]

_PREVIEW = 256
"""Longest side of MLflow's compressed images (mlflow 3.17)."""
_GRID_GAP = 2
_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP", ".gif": "GIF"}


def to_image(value: Any, layout: str | None = None, *, stretch: bool = True) -> Image.Image:
    """A picture from a tensor, an array, a PIL image, a wrapper of one (mlflow.Image, wandb.Image) or a file's path.

    layout: letters of N, C, H, W as in TensorBoard's dataformats; None: guessed. Several pictures become one grid.
    stretch: whether floats beyond 0 to 1 are scaled to their range, as MLflow does; TensorBoard cuts them off.
    Raises: ValueError for what is no picture.
    """
    if isinstance(value, Image.Image):
        return value
    if isinstance(value, str | Path):
        with Image.open(value) as file:
            return file.copy()
    for wrapped in (getattr(value, "to_pil", None), getattr(value, "image", None)):
        if wrapped is not None:
            return to_image(wrapped() if callable(wrapped) else wrapped)
    array = to_array(value)
    x_HWC = _channels_last(array, layout or _guess_layout(array, is_tensor=hasattr(value, "detach")))
    pixels = np.ascontiguousarray(_to_bytes(x_HWC, stretch=stretch))
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def to_array(value: Any) -> Array:
    """A tensor of any device, a list or an array, as an array. Raises: ValueError if it holds no numbers."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float() if value.is_floating_point() else value
        return np.asarray(value.numpy())
    array = np.stack([to_array(one) for one in value]) if isinstance(value, list | tuple) else np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"it must hold numbers; got {type(value).__name__} of {array.dtype}")
    return array


def encode(image: Image.Image, suffix: str = ".png") -> bytes:
    """The bytes of a file with this suffix; PNG for one that is unknown."""
    kind, buffer = _FORMATS.get(suffix.lower(), "PNG"), io.BytesIO()
    if kind in ("JPEG", "BMP") and image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    image.save(buffer, kind)
    return buffer.getvalue()


def preview(image: Image.Image) -> bytes:
    """The small form that MLflow's page shows, as WebP."""
    small = image.convert("RGBA" if "A" in image.mode else "RGB")
    small.thumbnail((_PREVIEW, _PREVIEW))
    return encode(small, ".webp")


def figure_bytes(figure: Any, suffix: str, **options: Any) -> bytes:
    """A matplotlib or plotly figure, or anything else that has a matplotlib figure, such as a seaborn grid."""
    buffer = io.BytesIO()
    if hasattr(figure, "write_html"):  # of plotly, whose pictures would need a browser
        html = io.StringIO()
        figure.write_html(html, **{"include_plotlyjs": "cdn", **options})
        return html.getvalue().encode()
    drawn = figure if hasattr(figure, "savefig") else getattr(figure, "figure", None)
    if drawn is None or not hasattr(drawn, "savefig"):
        raise ValueError(f"it must be a figure of matplotlib or plotly; got {type(figure).__name__}")
    drawn.savefig(buffer, **{"format": suffix.removeprefix(".") or "png", **options})
    return buffer.getvalue()


def _guess_layout(array: Array, *, is_tensor: bool) -> str:
    """Tensors have channels first, arrays last, unless only the other reading makes a picture."""
    if array.ndim not in (2, 3, 4):
        raise ValueError(f"a picture must have 2 to 4 dimensions; got shape {array.shape}")
    if array.ndim == 2:
        return "HW"
    first, last = array.shape[-3] in (1, 3, 4), array.shape[-1] in (1, 3, 4)
    layout = "CHW" if first and (is_tensor or not last) else "HWC"
    return layout if array.ndim == 3 else f"N{layout}"


def _channels_last(array: Array, layout: str) -> Array:
    layout = layout.upper()
    if sorted(layout) not in (["H", "W"], ["C", "H", "W"], ["C", "H", "N", "W"]):
        raise ValueError(f"dataformats must name H and W, and may name C and N, once each; got {layout!r}")
    if array.ndim != len(layout):
        raise ValueError(f"a picture of layout {layout} must have {len(layout)} dimensions; got shape {array.shape}")
    if "C" not in layout:
        array, layout = array[..., None], f"{layout}C"
    if "N" not in layout:
        array, layout = array[None], f"N{layout}"
    x_NHWC = array.transpose([layout.index(axis) for axis in "NHWC"])
    if x_NHWC.shape[-1] not in (1, 3, 4) or 0 in x_NHWC.shape:
        raise ValueError(f"a picture must have 1, 3 or 4 channels and no empty side; got {layout} of {array.shape}")
    return x_NHWC[0] if len(x_NHWC) == 1 else _grid(x_NHWC)


def _grid(x_NHWC: Array) -> Array:
    """All pictures in rows of about as many as there are rows."""
    count, height, width, channels = x_NHWC.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    gap = _GRID_GAP
    grid = np.zeros((rows * (height + gap) - gap, columns * (width + gap) - gap, channels), x_NHWC.dtype)
    for index, picture in enumerate(x_NHWC):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        grid[top : top + height, left : left + width] = picture
    return grid


def _to_bytes(array: Array, *, stretch: bool) -> Array:
    """Values 0 to 255. Whole numbers are taken as they are, truth values as black and white."""
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    if array.dtype.kind == "f":
        array = np.nan_to_num(array.astype(np.float32), posinf=1.0, neginf=0.0)
        low, high = array.min(), array.max()
        if stretch and (low < 0 or high > 1):
            array = (array - low) / max(high - low, np.finfo(np.float32).tiny)
        array = array * 255
    return np.asarray(array.clip(0, 255).astype(np.uint8))
