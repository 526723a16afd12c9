"""Reports about detection in jobs on a real Ray."""

from __future__ import annotations

import contextlib
import io
from itertools import count
from typing import Any

import pytest

from tests.helpers.vision.on_ranks import job
from tests.vision.conftest import Submitted, run_of

pytestmark = [pytest.mark.stack, pytest.mark.timeout(400)]


def precision_at_half(images: list[dict[str, Any]]) -> float:
    """pycocotools' average precision at an overlap of one half."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    numbers = count(1)
    truth, found = COCO(), []
    truth.dataset = {
        "info": {},
        "images": [{"id": number} for number in range(len(images))],
        "categories": [{"id": 1}],
        "annotations": [
            _annotation(box, image, id=next(numbers), iscrowd=0)
            for image, one in enumerate(images)
            for box in one["truth"]
        ],
    }
    for image, one in enumerate(images):
        for box, score, label in zip(one["boxes"], one["scores"], one["labels"], strict=True):
            assert label == 1
            found.append(_annotation(box, image, score=score))
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        scored = COCOeval(truth, truth.loadRes(found), "bbox")
        scored.evaluate()
        scored.accumulate()
        scored.summarize()
    return float(scored.stats[1])


def _annotation(box: list[float], image: int, **more: Any) -> dict[str, Any]:
    x, y, right, bottom = box
    width, height = right - x, bottom - y
    return {"image_id": image, "category_id": 1, "bbox": [x, y, width, height], "area": width * height, **more}


# https://github.com/Lightning-AI/torchmetrics/issues/3199
def test_torchmetrics_3199_precision_of_two_workers_is_that_of_all_images(submitted: Submitted) -> None:
    done, (first, second) = submitted(job("detection.Detector", "detection.Boxes", train={"epochs": 6}))

    assert done["state"] == "succeeded", done["message"]
    assert first["norm"] == "SyncBatchNorm"
    assert first["weights"] == second["weights"]
    assert (len(first["seen"]), len(second["seen"])) == (4, 3)  # seven images, each of them once
    wanted = precision_at_half(first["seen"] + second["seen"])
    assert wanted > 0
    assert run_of(done)["metrics"]["map50"] == pytest.approx(wanted, abs=1e-6)
