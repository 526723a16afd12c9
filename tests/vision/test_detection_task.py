"""Detection as a built-in task: k workers train and score what one does, and pycocotools agrees."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from syncnorm.trainer.contract.spec_reader import read_spec
from syncnorm.trainer.data import build_data
from syncnorm.trainer.training import checkpoints
from syncnorm.trainer.training.tasks.detection.average_precision import PrecisionScores
from syncnorm.trainer.worker.model_inspection import inspect
from syncnorm.trainer.worker.module_and_data import assemble
from tests.helpers.norm.pool import Pool
from tests.helpers.trainer.ranks import RecordingReporter, train
from tests.helpers.vision.coco_scenes import write_scenes

TINY = "tests.helpers.vision.tiny_detectors"
pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """14 images to train on and 9 held out: of batches of 6 the last one has 2, so that of 3 workers one has none."""
    write_scenes(root := tmp_path_factory.mktemp("scenes"), 23)
    return root


def job(root: Path, model: str, workers: int = 1, /, **changes: Any) -> dict[str, Any]:
    files = {"root": f"{root}/images", "annotations": f"{root}/annotations.json"}
    data = {"val_fraction": 0.4, "num_workers": 0, "masks": "mask" in model}
    return {
        "name": "scenes",
        "model": {"class_path": f"{TINY}.{model}"} if "/" not in model else {"name": model},
        "data": {"name": "coco", "batch_size": 6 // workers, "init_args": {**files, **data}},
        "norm": {"kind": "sync_batch"},
        "optimizer": {"name": "sgd", "lr": 0.01, "momentum": 0.9},
        "train": {"epochs": 1, "precision": "64-true"},
        "resources": {"workers": workers},
        **changes,
    }


@pytest.mark.parametrize("model", ["faster_rcnn", "mask_rcnn", "retinanet", "fcos", "ssd"])
def test_workers_equal_one_device(model: str, scenes: Path, ranks: Pool, tmp_path: Path) -> None:
    """Three steps in fp64, with norms in backbone and heads, uneven shares, and a worker without an image."""
    one, *_ = ranks.run(train, 1, str(tmp_path / "1"), job(scenes, model))

    for workers in (2, 3):
        document = job(scenes, model, workers, diagnostics=["equivalence"])
        several = ranks.run(train, workers, str(tmp_path / str(workers)), document)

        for name, tensor in one.state.items():
            torch.testing.assert_close(several[0].state[name], tensor, rtol=1e-9, atol=1e-9)
        assert several[0].metrics == several[-1].metrics
        assert several[0].metrics == pytest.approx(one.metrics, rel=1e-9)
        proved = json.loads((tmp_path / str(workers) / "artifacts/diagnostics/equivalence.json").read_text())
        assert [record["equal"] for record in proved] == [True] * 3


@pytest.mark.parametrize("model", ["mask_rcnn", "fcos"])
@pytest.mark.parametrize(("workers", "accumulate"), [(1, 3), (3, 2)])
def test_micro_batches_as_one_batch_equal_one_device(
    workers: int, accumulate: int, model: str, scenes: Path, ranks: Pool, tmp_path: Path
) -> None:
    """Images of a step are padded alike, and losses count by what they are means over, whatever micro-batch has it."""
    one, *_ = ranks.run(train, 1, str(tmp_path / "1"), job(scenes, model))
    document = job(scenes, model, workers)
    document["data"]["batch_size"] = 6 // (workers * accumulate)
    document["train"] |= {"accumulate": accumulate, "accumulate_statistics": "exact"}

    found, *_ = ranks.run(train, workers, str(tmp_path / "2"), document)

    for name, tensor in one.state.items():
        torch.testing.assert_close(found.state[name], tensor, rtol=1e-9, atol=1e-9)
    assert found.metrics == pytest.approx(one.metrics, rel=1e-9)


def test_each_loss_is_logged_and_their_sum(scenes: Path, ranks: Pool, tmp_path: Path) -> None:
    metrics = ranks.run(train, 2, str(tmp_path), job(scenes, "mask_rcnn", 2))[0].metrics

    losses = ("classifier", "box_reg", "mask", "objectness", "rpn_box_reg")
    assert metrics["train/loss"] == pytest.approx(sum(metrics[f"train/loss_{name}"] for name in losses))


@pytest.mark.parametrize("sizes", [[48, 64, 80]])
def test_sizes_that_are_drawn_are_those_of_one_device(
    sizes: list[int], scenes: Path, ranks: Pool, tmp_path: Path
) -> None:
    model = {"class_path": f"{TINY}.faster_rcnn", "init_args": {"min_size": sizes}}
    one, two = (
        ranks.run(train, workers, str(tmp_path / str(workers)), job(scenes, "", workers, model=model))[0]
        for workers in (1, 2)
    )

    for name, tensor in one.state.items():
        torch.testing.assert_close(two.state[name], tensor, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("model", ["faster_rcnn", "retinanet", "fcos", "ssd"])
def test_plan_promises_one_device(model: str, scenes: Path) -> None:
    found = inspect(read_spec(job(scenes, model, 2)))

    assert [one for one in found.findings if one.severity == "error"] == []
    assert found.guarantees is not None
    assert found.guarantees.equals_one_device.holds == "yes"
    assert {one["to"] for one in found.conversion} - {"GroupNorm"} == {"SyncBatchNorm"}


def test_stopped_job_goes_on_as_if_it_had_not_stopped(scenes: Path, ranks: Pool, tmp_path: Path) -> None:
    document = job(scenes, "fcos", 2)
    whole, *_ = ranks.run(train, 2, str(tmp_path / "whole"), document)

    ranks.run(train, 2, str(tmp_path / "cut"), document, None, RecordingReporter(stop_at=2))
    newest = checkpoints.newest([tmp_path / "cut" / "checkpoints"])
    assert newest is not None
    resumed, *_ = ranks.run(train, 2, str(tmp_path / "resumed"), document, str(newest.path))
    alone, *_ = ranks.run(train, 1, str(tmp_path / "alone"), document, str(newest.path))

    assert resumed.metrics == whole.metrics
    assert all(torch.equal(resumed.state[name], tensor) for name, tensor in whole.state.items())
    assert alone.metrics == pytest.approx(whole.metrics, rel=1e-9)


def test_plan_of_a_detector_of_ones_own_says_what_nobody_knows(scenes: Path) -> None:
    found = inspect(read_spec(job(scenes, "OwnDetector", 2)))

    assert [one for one in found.findings if one.severity == "error"] == []
    assert found.guarantees is not None
    promised = found.guarantees.equals_one_device
    assert promised.holds == "partly"
    assert promised.why.startswith("the losses of OwnDetector are taken for means over images; where they are means")


def test_detector_of_ones_own_is_trained_and_scored(scenes: Path, ranks: Pool, tmp_path: Path) -> None:
    one, two = (
        ranks.run(train, workers, str(tmp_path / str(workers)), job(scenes, "OwnDetector", workers))[0].metrics
        for workers in (1, 2)
    )

    assert {"train/loss", "train/loss_count", "val/map", "val/map_50"} <= one.keys()
    assert two["train/loss"] > 0


# Precision


def seen_by(rank: int, world_size: int, document: dict[str, Any], shares: list[list[int]]) -> dict[str, float]:
    """The scores over images with made-up predictions, of which this rank has those of its share."""
    data = build_data(read_spec(document).data, 0)
    scores = PrecisionScores(data.info.categories)
    for index in shares[rank]:
        image, target = data.val[index]
        scores.update(made_up(target, index, "masks" in document["name"]), target, image.shape[-2:])
    return {name: float(value) for name, value in scores.compute().items()}


def made_up(target: dict[str, Any], index: int, has_masks: bool) -> dict[str, torch.Tensor]:
    """Boxes near the true ones and elsewhere, with scores that often tie; none for every fourth image."""
    draw = torch.Generator().manual_seed(index)
    true = target["boxes"].repeat(2, 1)
    moved = (true + 3 * torch.randn(true.shape, generator=draw)).clamp(min=0)
    boxes = torch.cat([moved[:, :2], torch.maximum(moved[:, 2:], moved[:, :2] + 1)], 1)[: 0 if index % 4 == 3 else None]
    labels = target["labels"].repeat(2)[: len(boxes)]
    scores = torch.randint(1, 6, (len(boxes),), generator=draw) / 5
    found = {"boxes": boxes, "labels": labels, "scores": scores}
    if has_masks:
        grid = torch.arange(80.0)
        inside = [((grid >= b[0]) & (grid < b[2]))[None] & ((grid >= b[1]) & (grid < b[3]))[:, None] for b in boxes]
        found["masks"] = torch.stack(inside)[:, None].float() if inside else torch.zeros(0, 1, 80, 80)
    return found


def by_pycocotools(document: dict[str, Any], kind: str) -> list[float]:
    """What pycocotools says of the file and of results in a list, by its own way through loadRes."""
    from pycocotools import mask as masks
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    data = build_data(read_spec(document).data, 0)
    raw = json.loads(Path(document["data"]["init_args"]["annotations"]).read_text())
    held_out = [data.val[index][1]["image_id"] for index in range(len(data.val))]  # type: ignore[arg-type]
    results = []
    for index in range(len(data.val)):  # type: ignore[arg-type]
        _, target = data.val[index]
        found = made_up(target, index, kind == "segm")
        for place, (x, y, right, bottom) in enumerate(found["boxes"].double().tolist()):
            result = {"image_id": target["image_id"], "category_id": {1: 3, 2: 7}[int(found["labels"][place])]}
            result["score"] = float(found["scores"][place])
            if kind == "segm":
                result["segmentation"] = masks.encode((found["masks"][place, 0] > 0.5).byte().numpy().copy(order="F"))
            else:
                result["bbox"] = [x, y, right - x, bottom - y]
            results.append(result)
    for number, record in enumerate(raw["annotations"], 1):
        record["id"] = number  # COCOeval takes an annotation 0 for one that was not found
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = raw
        truth.createIndex()
        scored = COCOeval(truth, truth.loadRes(results), kind)
        scored.params.imgIds = sorted(held_out)
        scored.evaluate()
        scored.accumulate()
        scored.summarize()
    return [float(stat) for stat in scored.stats]


@pytest.fixture
def crowded(tmp_path: Path) -> Path:
    """80x80 scenes, some empty, some with a crowd."""
    write_scenes(tmp_path, 40, sides=(80, 81))
    return tmp_path


@pytest.mark.parametrize(
    "shares",
    [
        [list(range(16))],
        [list(range(0, 16, 2)), list(range(1, 16, 2))],
        [[15, 3, 0], list(range(1, 3)) + list(range(4, 15)), []],
    ],
    ids=["one", "two", "three, one without an image"],
)
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_precision_is_that_of_pycocotools(kind: str, shares: Any, crowded: Path, ranks: Pool) -> None:
    document = job(crowded, "faster_rcnn") | {"name": "masks" if kind == "segm" else "boxes"}

    found = ranks.run(seen_by, len(shares), document, shares)

    wanted, end = by_pycocotools(document, kind), "_segm" if kind == "segm" else ""
    assert 0.05 < wanted[0] < 0.95
    for scores in found:
        assert scores[f"val/map{end}"] == pytest.approx(wanted[0], abs=1e-9)
        assert scores[f"val/map_50{end}"] == pytest.approx(wanted[1], abs=1e-9)
    if kind == "bbox":
        classes = [scores[f"val/map_class/{name}"] for name in ("tall", "wide")]
        assert sum(classes) / 2 == pytest.approx(wanted[0], abs=1e-9)


def test_precision_without_a_prediction_is_zero_and_without_an_object_nothing(crowded: Path, ranks: Pool) -> None:
    document = job(crowded, "faster_rcnn")

    unfound, nothing = (ranks.run(seen_by, 2, document, shares)[1] for shares in ([[], [3, 7]], [[], []]))

    assert unfound["val/map"] == 0
    assert nothing["val/map"] != nothing["val/map"]  # NaN


# Models


@pytest.mark.parametrize(
    ("name", "init_args"),
    [
        ("fasterrcnn_resnet50_fpn", {"min_size": 64, "anchor_sizes": [[8], [16], [32], [64], [128]]}),
        ("retinanet_resnet50_fpn_v2", {"min_size": 64}),
        ("fcos_resnet50_fpn", {"min_size": 64}),
        ("maskrcnn_resnet50_fpn", {"min_size": 64}),
        ("ssd300_vgg16", {}),
        ("ssdlite320_mobilenet_v3_large", {}),
    ],
)
def test_detectors_of_torchvision_are_built_for_the_classes(name: str, init_args: Any, scenes: Path) -> None:
    model = {"name": f"torchvision/{name}", "init_args": init_args}

    network = assemble(read_spec(job(scenes, "", model=model)), 0, 1).module.network  # type: ignore[union-attr]

    assert isinstance(network, nn.Module)
    found = network.eval()([torch.rand(3, 64, 70)])[0]
    assert set(found) >= {"boxes", "labels", "scores"}
    assert all(label in (1, 2) for label in found["labels"].tolist())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"name": "torchvision/resnet18"}, "torchvision/resnet18 does classification, but the data is for detection"),
        (
            {"name": "torchvision/fasterrcn_resnet50"},
            "torchvision has no model 'fasterrcn_resnet50'; it has fasterrcnn",
        ),
        ({"name": "torchvision/raft_small"}, "is of torchvision.models.optical_flow, which no data here is for"),
        ({"name": "unet"}, "unet finds no objects, but the data is for detection"),
        ({"name": "torchvision/fcos_resnet50_fpn", "init_args": {"anchor_sizes": [[8]]}}, "anchor_sizes is for Faster"),
        ({"name": "torchvision/fcos_resnet50_fpn", "init_args": {"layers": 3}}, "must fit torchvision's fcos_resnet50"),
        ({"class_path": f"{TINY}.NotADetector"}, "must give a dict with boxes, labels, scores for each image in eval"),
        ({"class_path": f"{TINY}.fcos", "loss": {"class_path": "torch.nn.L1Loss"}}, "model.loss must be left out"),
    ],
)
def test_network_that_does_not_suit_is_refused(model: dict[str, Any], message: str, scenes: Path) -> None:
    finding, *_ = inspect(read_spec(job(scenes, "", model=model))).findings

    assert finding.severity == "error"
    assert message in finding.message


@pytest.mark.parametrize("name", ["resnet18", "fcn_resnet50"])
def test_other_models_of_torchvision_do_their_task(name: str, tmp_path: Path) -> None:
    synthetic = {"name": "synthetic", "init_args": {"shape": [3, 32, 32], "num_classes": 3, "samples": 8}}
    digits = {"name": "digit_scenes", "init_args": {"classes": 3, "scenes": 4, "val_scenes": 2}}
    document = job(
        tmp_path, f"torchvision/{name}", data=(synthetic if name == "resnet18" else digits) | {"batch_size": 4}
    )

    found = inspect(read_spec(document)).findings

    if name == "resnet18":
        assert [one for one in found if one.severity == "error"] == []
    else:
        assert "takes images with 3 channels, got samples of shape (1, 32, 32)" in found[0].message


def test_transforms_of_torchvision_move_boxes_and_masks(scenes: Path) -> None:
    transforms = [{"name": "RandomIoUCrop"}, {"name": "RandomVerticalFlip", "init_args": {"p": 1.0}}]
    document = job(scenes, "faster_rcnn")
    document["data"]["init_args"] |= {"transforms": transforms, "masks": True}
    data = build_data(read_spec(document).data, 0)
    import numpy as np

    objects = 0
    for index in range(len(data.train)):  # type: ignore[arg-type]
        image, target = data.train.read(index, np.random.default_rng(index))  # type: ignore[attr-defined]
        again = data.train.read(index, np.random.default_rng(index))[0]  # type: ignore[attr-defined]
        assert torch.equal(image, again)
        for box, mask in zip(target["boxes"].long().tolist(), target["masks"], strict=True):
            rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
            found = [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]
            assert max(abs(a - b) for a, b in zip(found, box, strict=True)) <= 1
            objects += 1
    assert objects > 5


def test_wrong_transform_is_named(scenes: Path) -> None:
    for transform, message in (
        ({"name": "Nothing"}, r"transforms.0.name must be a class of torchvision.transforms.v2, got 'Nothing'"),
        ({"name": "RandomRotation"}, r"transforms.0.init_args must fit torchvision's RandomRotation: .*degrees"),
    ):
        document = job(scenes, "faster_rcnn")
        document["data"]["init_args"]["transforms"] = [transform]
        with pytest.raises(ValueError, match=message):
            build_data(read_spec(document).data, 0)
