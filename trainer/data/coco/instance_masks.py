"""Masks of objects: polygons and run-length encodings as pixels."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def coco_masks() -> Any:
    """pycocotools.mask. Raises: ValueError saying how to install it."""
    try:
        return importlib.import_module("pycocotools.mask")
    except ImportError as error:
        raise ValueError(
            "data.name: coco needs pycocotools for masks and precision, which can't be imported here "
            f"({error}). Install the extra: pip install 'syncnorm[vision]'."
        ) from error


def masks_of(records: Sequence[Mapping[str, Any]], width: int, height: int) -> Tensor:
    """uint8 (N, height, width), 1 within each object."""
    if not records:
        return torch.zeros(0, height, width, dtype=torch.uint8)
    encodings = [run_lengths(record["segmentation"], width, height) for record in records]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pycocotools 2.0.11 with numpy 2
        decoded = [coco_masks().decode(one) for one in encodings]
    return torch.from_numpy(np.stack(decoded))


def run_lengths(segmentation: Any, width: int, height: int) -> Any:
    """The compressed run-length encoding of pycocotools."""
    masks = coco_masks()
    if isinstance(segmentation, list):
        return masks.merge(masks.frPyObjects(segmentation, height, width))
    if isinstance(segmentation["counts"], list):
        return masks.frPyObjects(segmentation, height, width)
    return segmentation


def encoded(mask: Tensor) -> Any:
    """The run-length encoding of a mask (H, W)."""
    return coco_masks().encode(np.asfortranarray(mask.cpu().numpy().astype(np.uint8)))
