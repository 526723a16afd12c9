"""Writes volumes and masks as NIfTI files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np

CODES = {"RAS": (1.0, 1.0, 1.0), "LPS": (-1.0, -1.0, 1.0)}


def affine_of(axes: str = "RAS", sizes: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> np.ndarray:
    return np.diag([*(sign * size for sign, size in zip(CODES[axes], sizes, strict=True)), 1.0])


def save(path: Path, data: np.ndarray, affine: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(data, affine_of() if affine is None else affine), path)


def scene(seed: int, shape: tuple[int, int, int] = (20, 18, 16)) -> tuple[np.ndarray, np.ndarray]:
    """(image, mask): noise with a block of class 1, which has a core of class 2; each as bright as its class."""
    rng = np.random.default_rng(seed)
    corner = [int(rng.integers(1, side - 10)) for side in shape]
    mask = np.zeros(shape, np.uint8)
    mask[tuple(slice(at, at + 8) for at in corner)] = 1
    mask[tuple(slice(at + 2, at + 5) for at in corner)] = 2
    image = rng.normal(100, 20, shape) + 100 * mask
    return image.astype(np.float32), mask


def write_folder(root: Path, volumes: int = 4, **files: Any) -> Path:
    """images/vN.nii.gz and masks/vN.nii.gz of scenes of different sizes."""
    for index in range(volumes):
        image, mask = scene(index, (20 + 2 * index, 18, 16))
        save(root / "images" / f"v{index}.nii.gz", image, files.get("affine"))
        save(root / "masks" / f"v{index}.nii.gz", mask, files.get("affine"))
    return root
