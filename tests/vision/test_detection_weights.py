"""Detectors that start from trained weights: of a file, with another head, and of torchvision's cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from syncnorm import norm
from syncnorm.trainer.contract.initial_weights import WeightAccess
from syncnorm.trainer.contract.norm_choice import chosen_norm
from syncnorm.trainer.contract.spec_reader import read_spec
from syncnorm.trainer.data.info import DataInfo
from syncnorm.trainer.models import build_model
from syncnorm.trainer.training.conversion import convert
from syncnorm.trainer.weights.loading import InitialWeights
from syncnorm.trainer.weights.sources import read_source

INFO = DataInfo("detection", 2, (3, 64, 64))
NAME = "fasterrcnn_resnet50_fpn"


def spec_of(model: dict[str, Any], kind: str = "sync_batch") -> Any:
    data = {"name": "coco", "batch_size": 1, "init_args": {"root": "images", "annotations": "a.json"}}
    return read_spec(
        {"name": "x", "model": {"name": f"torchvision/{NAME}", **model}, "data": data, "norm": {"kind": kind}}
    )


def filled(network: nn.Module) -> dict[str, torch.Tensor]:
    """Every tensor with values of its own."""
    torch.manual_seed(0)
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 2) if name.endswith("running_var") else tensor.normal_(0, 0.1)
    return network.state_dict()


@pytest.mark.parametrize("kind", ["sync_batch", "frozen_batch"])
def test_trained_detector_gets_another_head(kind: str, tmp_path: Path) -> None:
    """That of COCO has frozen layers in its backbone and 91 classes."""
    from torchvision.models.detection import fasterrcnn_resnet50_fpn
    from torchvision.ops.misc import FrozenBatchNorm2d

    trained = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, norm_layer=FrozenBatchNorm2d)
    source = filled(trained)
    torch.save(source, tmp_path / "coco.pth")
    how = {"file": str(tmp_path / "coco.pth"), "drop": ["roi_heads.box_predictor.*"]}
    spec = spec_of({"init_from": how}, kind)
    origin = read_source(spec.model.init_from, WeightAccess(), "", tmp_path / "staged")

    network, _ = convert(build_model(spec.model, chosen_norm(spec), INFO), spec, None)
    (weights := InitialWeights(tmp_path / "staged", origin, spec)).load(network)

    found = network.state_dict()
    assert found["roi_heads.box_predictor.cls_score.weight"].shape[0] == 3
    arrived = [name for name in source if "box_predictor" not in name]
    assert all(torch.equal(found[name], source[name]) for name in arrived)
    assert len(arrived) > 250
    assert weights.findings == []


def test_weights_of_a_backbone_come_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.models import ResNet50_Weights, resnet50

    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    source = filled(resnet50())
    torch.save(source, cache / ResNet50_Weights.IMAGENET1K_V1.url.rpartition("/")[2])
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    spec = spec_of({"init_args": {"weights_backbone": "IMAGENET1K_V1"}})

    network, report = convert(build_model(spec.model, chosen_norm(spec), INFO), spec, None)

    body = network.get_submodule("backbone.body")
    assert {one["to"] for one in report} == {"SyncBatchNorm"}
    assert isinstance(body.get_submodule("layer1.0.bn1"), norm.SyncBatchNorm)
    assert torch.equal(body.state_dict()["layer3.0.bn2.running_var"], source["layer3.0.bn2.running_var"])
    assert torch.equal(body.state_dict()["layer4.0.conv1.weight"], source["layer4.0.conv1.weight"])


def test_weights_with_another_head_say_what_to_do() -> None:
    spec = spec_of({"init_args": {"weights": "DEFAULT"}})

    with pytest.raises(
        ValueError, match=r"have a head for 91 classes, but the data has 3. Leave it out and name the fi"
    ):
        build_model(spec.model, chosen_norm(spec), INFO)
