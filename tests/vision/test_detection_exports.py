"""Detectors of torchvision as pt2 and ONNX files that find the same boxes, and those that can't be exported."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from syncnorm.trainer.contract.spec import ExportSpec
from syncnorm.trainer.errors import NoExportError
from syncnorm.trainer.export.certificate import passed
from syncnorm.trainer.export.certification import TrainedModel, export_and_compare
from syncnorm.trainer.export.forward_inputs import ForwardInputs

# Exporters warn about their own internals.
pytestmark = [pytest.mark.timeout(400), pytest.mark.filterwarnings("ignore")]


def trained(name: str) -> TrainedModel:
    from tests.helpers.vision import tiny_detectors

    torch.manual_seed(0)
    network = getattr(tiny_detectors, name)(num_classes=3)
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            layer.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    held_out = [ForwardInputs(([torch.rand(3, 64, 80)],)) for _ in range(3)]
    return TrainedModel("job_1", network.eval(), held_out, {}, {}, 0)


@pytest.mark.parametrize("name", ["faster_rcnn", "ssd"])
def test_exported_files_find_the_same_boxes(name: str, tmp_path: Path) -> None:
    compared = export_and_compare(trained(name), ExportSpec(), tmp_path)

    assert {check.runtime for check in compared.checks} == {"eager", "torch.export", "onnxruntime"}
    assert [check.samples for check in compared.checks] == [3] * 6
    assert passed(compared.checks), compared.checks
    assert len(compared.references["held_out"][0][1]["[0]['boxes']"]) > 5


@pytest.mark.parametrize("name", ["mask_rcnn", "on_a_pyramid", "retinanet", "fcos"])
def test_detector_that_torch_cannot_export_is_traced_for_onnx(name: str, tmp_path: Path) -> None:
    compared = export_and_compare(trained(name), ExportSpec(), tmp_path)

    assert {check.runtime for check in compared.checks} == {"eager", "onnxruntime"}
    assert passed(compared.checks), compared.checks


def test_detector_that_torch_cannot_export_is_refused_in_a_sentence(tmp_path: Path) -> None:
    said = r"^the network must be exportable for one image, but torch.export says: Could not"
    with pytest.raises(NoExportError, match=said):
        export_and_compare(trained("mask_rcnn"), ExportSpec(formats=["pt2"]), tmp_path)
