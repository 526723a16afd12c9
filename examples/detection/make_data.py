"""Nuclei with instance masks as images and COCO files: `python make_data.py FOLDER`.

The picture (512x512, 125 nuclei) comes with the source package of stardist (Schmidt et al. 2018, arXiv:1806.03535),
which pip downloads. Crops of its left three quarters are for training, crops of the rest for validation. A nucleus that
a crop cuts to less than a third of its area is a crowd: it counts neither as found nor as missed.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIDE, TRAIN_WIDTH, STRIDE = 128, 384, 32
LEAST_SHARE = 1 / 3


def main(folder: Path) -> None:
    image, mask = download()
    areas = np.bincount(mask.ravel())
    (folder / "images").mkdir(parents=True, exist_ok=True)
    last = image.shape[0] - SIDE
    train = [(y, x) for y in range(0, last + 1, STRIDE) for x in range(0, TRAIN_WIDTH - SIDE + 1, STRIDE)]
    val = [(y, x) for y in range(0, last + 1, SIDE) for x in range(TRAIN_WIDTH, image.shape[1] - SIDE + 1, SIDE)]
    for name, corners in (("train", train), ("val", val)):
        document: dict[str, Any] = {
            "images": [],
            "annotations": [],
            "categories": [{"id": 1, "name": "nucleus"}],
        }
        for y, x in corners:
            add_crop(document, name, image[y : y + SIDE, x : x + SIDE], mask[y : y + SIDE, x : x + SIDE], areas, folder)
        (folder / f"{name}.json").write_text(json.dumps(document))
        print(f"{folder / name}.json: {len(document['images'])} crops, {len(document['annotations'])} nuclei")


def download() -> tuple[np.ndarray, np.ndarray]:
    """The picture, from 0 to 255, and the number of the nucleus at each pixel, 0 for the ground."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--dest", folder]
        subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", *options, "stardist"], check=True)
        (archive,) = Path(folder).glob("stardist-*.tar.gz")
        with tarfile.open(archive) as files:
            image, mask = (read(files, archive.name.removesuffix(".tar.gz"), name) for name in ("img2d", "mask2d"))
    low, high = np.percentile(image, (1, 99.8))
    return (np.clip((image - low) / (high - low), 0, 1) * 255).astype(np.uint8), mask.astype(np.int64)


def read(files: tarfile.TarFile, folder: str, name: str) -> np.ndarray:
    content = files.extractfile(f"{folder}/stardist/data/images/{name}.tif")
    assert content is not None
    return np.asarray(Image.open(io.BytesIO(content.read()))).astype(np.float64)


def add_crop(
    document: dict[str, Any], part: str, image: np.ndarray, mask: np.ndarray, areas: np.ndarray, folder: Path
) -> None:
    number = len(document["images"]) + 1
    file = f"{part}-{number:03}.png"
    Image.fromarray(image).save(folder / "images" / file)
    document["images"].append({"id": number, "file_name": file, "width": SIDE, "height": SIDE})
    for nucleus in np.unique(mask[mask > 0]):
        inside = mask == nucleus
        rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
        area = int(inside.sum())
        document["annotations"].append(
            {
                "id": len(document["annotations"]) + 1,
                "image_id": number,
                "category_id": 1,
                "bbox": [int(columns[0]), int(rows[0]), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1],
                "area": area,
                "iscrowd": int(area < LEAST_SHARE * areas[nucleus]),
                "segmentation": {"size": [SIDE, SIDE], "counts": run_lengths(inside)},
            }
        )


def run_lengths(inside: np.ndarray) -> list[int]:
    """Lengths of runs of 0 and 1 in turn, column by column, beginning with 0: COCO's uncompressed form."""
    values = inside.ravel(order="F").astype(np.int8)
    ends = np.flatnonzero(np.diff(values)) + 1
    runs = np.diff([0, *ends, len(values)]).tolist()
    return [0, *runs] if values[0] else runs


if __name__ == "__main__":
    main(Path(sys.argv[1]))
