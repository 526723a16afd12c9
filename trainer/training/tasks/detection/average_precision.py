"""COCO's average precision over the images of all workers, computed by pycocotools."""

from __future__ import annotations

import contextlib
import importlib
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from syncnorm.trainer.data.coco.instance_masks import encoded, run_lengths
from syncnorm.trainer.data.info import Category
from syncnorm.trainer.ranks.exchange import gather

_STATS = {"map": 0, "map_50": 1, "map_75": 2, "map_small": 3, "map_medium": 4, "map_large": 5, "mar_100": 8}
"""Name of a score by its place in COCOeval.stats."""
MASK_LEVEL = 0.5
Seen = dict[str, Any]
"""Of one image: its id and size, `truth` (annotations) and `found` (results), as plain data of COCO's form."""


class PrecisionScores(nn.Module):
    """`val/map`, `val/map_50` and so on, and `val/map_class/NAME` of each class that occurs; of masks, if the network
    finds them, `val/map_segm` and `val/map_50_segm`.

    What each worker has seen is exchanged as plain data, once, and every worker computes the scores itself: nobody
    waits while others compute, and a worker without images or predictions brings an empty list.
    """

    def __init__(self, categories: Sequence[Category]) -> None:
        super().__init__()
        self._categories = categories
        self._seen: list[Seen] = []

    def update(self, found: Mapping[str, Tensor], target: Mapping[str, Any], size: Sequence[int]) -> None:
        """Count one image. found: what the network gives for it. size: its height and width."""
        image = target["image_id"]
        self._seen.append(
            {
                "id": image,
                "height": int(size[0]),
                "width": int(size[1]),
                "truth": [dict(record) for record in target["truth"]],
                "found": self._as_results(found, image),
            }
        )

    def compute(self) -> dict[str, Tensor]:
        """Entered by every worker."""
        of_workers = gather(self._seen)
        seen = sorted((one for worker in of_workers for one in worker), key=lambda one: one["id"])
        values = precision(seen, self._categories)
        return {f"val/{name}": torch.tensor(value, dtype=torch.float64) for name, value in values.items()}

    def reset(self) -> None:
        self._seen = []

    def _as_results(self, found: Mapping[str, Tensor], image: int) -> list[dict[str, Any]]:
        boxes = found["boxes"].detach().double().cpu()
        corners, sides = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
        results = [
            {"image_id": image, "category_id": self._id_of(label), "bbox": bbox, "score": score}
            for bbox, score, label in zip(
                torch.cat([corners, sides], 1).tolist(),
                found["scores"].detach().double().tolist(),
                found["labels"].tolist(),
                strict=True,
            )
        ]
        if "masks" in found:
            for result, mask in zip(results, found["masks"], strict=True):
                result["segmentation"] = encoded(mask.squeeze(0) > MASK_LEVEL)
        return results

    def _id_of(self, label: int) -> int:
        """The category of a label; labels beyond the classes of the data get ids that no annotation has."""
        return self._categories[label - 1].id if 0 < label <= len(self._categories) else -label - 1


def precision(seen: Sequence[Seen], categories: Sequence[Category]) -> dict[str, float]:
    """The scores over all images, by name; those of sizes and classes without an object are left out."""
    values = _boxes(seen, categories)
    has_masks = any("segmentation" in result for one in seen for result in one["found"])
    has_true_masks = any(record.get("segmentation") for one in seen for record in one["truth"])
    if has_masks and has_true_masks:
        stats = _evaluated(seen, categories, "segm").stats
        values |= {f"{name}_segm": _or_nan(stats[_STATS[name]]) for name in ("map", "map_50")}
    return values


def _boxes(seen: Sequence[Seen], categories: Sequence[Category]) -> dict[str, float]:
    if not any(not record["iscrowd"] for one in seen for record in one["truth"]):
        return {"map": math.nan, "map_50": math.nan}
    scored = _evaluated(seen, categories, "bbox")
    values = {name: _or_nan(scored.stats[place]) for name, place in _STATS.items()}
    precision_TRKAM = scored.eval["precision"]
    for place, category in enumerate(sorted(categories)):
        of_class = precision_TRKAM[:, :, place, 0, -1]
        if (of_class > -1).any():
            values[f"map_class/{category.name}"] = float(of_class[of_class > -1].mean())
    always = ("map", "map_50")
    return {name: value for name, value in values.items() if name in always or not math.isnan(value)}


def _or_nan(stat: float) -> float:
    """COCOeval says -1 where there is no object to find."""
    return math.nan if stat < 0 else float(stat)


def _evaluated(seen: Sequence[Seen], categories: Sequence[Category], kind: str) -> Any:
    coco, evaluation = (importlib.import_module(f"pycocotools.{name}") for name in ("coco", "cocoeval"))
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        truth, found = coco.COCO(), coco.COCO()
        truth.dataset = _dataset(seen, categories, _true_records(seen, kind))
        found.dataset = _dataset(seen, categories, _found_records(seen, kind))
        truth.createIndex()
        found.createIndex()
        scored = evaluation.COCOeval(truth, found, kind)
        scored.evaluate()
        scored.accumulate()
        scored.summarize()
    return scored


def _dataset(seen: Sequence[Seen], categories: Sequence[Category], records: Iterable[dict[str, Any]]) -> dict[str, Any]:
    return {
        "images": [{name: one[name] for name in ("id", "height", "width")} for one in seen],
        "categories": [category._asdict() for category in categories],
        # Numbered from 1 here: COCOeval takes an annotation 0 for one that was not found.
        "annotations": [record | {"id": number} for number, record in zip(count(1), records, strict=False)],
    }


def _true_records(seen: Sequence[Seen], kind: str) -> Iterable[dict[str, Any]]:
    for one in seen:
        for record in one["truth"]:
            if kind == "bbox":
                yield {name: value for name, value in record.items() if name != "segmentation"}
            elif record.get("segmentation"):
                yield record | {"segmentation": run_lengths(record["segmentation"], one["width"], one["height"])}


def _found_records(seen: Sequence[Seen], kind: str) -> Iterable[dict[str, Any]]:
    for one in seen:
        for result in one["found"]:
            record = {**result, "iscrowd": 0}
            if kind == "bbox":
                record["area"] = result["bbox"][2] * result["bbox"][3]
            else:
                masks = importlib.import_module("pycocotools.mask")
                record["area"] = float(masks.area(result["segmentation"]))
            yield record
