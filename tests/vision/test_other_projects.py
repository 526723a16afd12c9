"""LightningModules of other projects, unchanged, on two workers. docs/reference/modules-that-run.md lists them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from syncnorm.trainer.export.forward_inputs import ForwardInputs, forward_inputs
from tests.helpers.norm.pool import Pool
from tests.helpers.vision.on_ranks import job, train_in

DRAWN = "other_projects.DrawnData"
DEMOS = "lightning.pytorch.demos"
BORING = {"class_path": f"{DEMOS}.boring_classes.BoringDataModule"}
IMAGES = {"model": "resnet18", "in_channels": 3, "weights": None}
BACKBONE = {"backbone": "resnet18", "in_channels": 3, "weights": None}

RUN: dict[str, tuple[str, Any, dict[str, Any], str | None]] = {
    "BoringModel": (f"{DEMOS}.boring_classes.BoringModel", BORING, {}, None),
    "ManualOptimBoringModel": (f"{DEMOS}.boring_classes.ManualOptimBoringModel", BORING, {}, None),
    "LightningTransformer": (f"{DEMOS}.transformer.LightningTransformer", None, {"vocab_size": 200}, None),
    "torchgeo classification": (
        "torchgeo.trainers.ClassificationTask",
        "labelled",
        {**IMAGES, "num_classes": 4},
        "val_loss",
    ),
    "torchgeo regression": ("torchgeo.trainers.RegressionTask", "valued", {**IMAGES, "num_outputs": 1}, "val_loss"),
    "torchgeo segmentation": (
        "torchgeo.trainers.SemanticSegmentationTask",
        "masked",
        {**BACKBONE, "num_classes": 2},
        "val_loss",
    ),
    "torchgeo detection": ("torchgeo.trainers.ObjectDetectionTask", "boxed", {**BACKBONE, "num_classes": 2}, "val_map"),
    "lightly linear": ("other_projects.linear_classifier", "pair", {}, "val_top1"),
    "lightly fine-tuned": ("other_projects.finetuned_classifier", "pair", {}, "val_top1"),
    "torch-uncertainty classification": ("other_projects.uncertain_classifier", "pair", {}, "val/cls/Acc"),
}


@pytest.mark.parametrize("name", RUN)
def test_module_of_another_project_runs_unchanged(name: str, ranks: Pool, tmp_path: Path) -> None:
    model, data, init_args, metric = RUN[name]
    document = job(model, DRAWN if isinstance(data, str) else data, {"form": data})
    document["model"]["init_args"] = init_args
    if data is None:
        del document["data"]
        (tmp_path / "data").mkdir()
        words = " ".join(f"word{number % 190}" for number in range(2000))
        (tmp_path / "data" / "wikitext-2.txt").write_text(f"{words}\n")

    first, second = ranks.run(train_in, 2, str(tmp_path), document)

    assert first.stopped_at is None
    assert first.metrics == pytest.approx(second.metrics, rel=0, abs=0, nan_ok=True)
    assert first.metrics["train/loss"] == pytest.approx(first.metrics["train/loss"])  # a number
    if metric is not None:
        assert metric in first.metrics
    for path, tensor in first.state.items():
        if not path.endswith(("running_mean", "running_var")):
            assert torch.equal(tensor, second.state[path]), path


def test_detector_in_a_module_is_given_one_image_for_its_export() -> None:
    """torchgeo stacks the images of a batch, and its forward passes on what it gets."""
    from torchgeo.trainers import ObjectDetectionTask

    from tests.helpers.vision.other_projects import DrawnData

    module = ObjectDetectionTask(num_classes=2, **BACKBONE)

    found = forward_inputs(module, next(iter(DrawnData("boxed").val_dataloader())))

    assert isinstance(found, ForwardInputs)
    assert [image.shape for image in found.args[0]] == [(3, 32, 32)]
