"""Frozen batch normalization as torchvision, Hugging Face and timm build it into networks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from syncnorm import norm
from syncnorm.norm import KINDS
from syncnorm.trainer.contract.initial_weights import WeightAccess
from syncnorm.trainer.contract.spec_reader import read_spec
from syncnorm.trainer.training.conversion import convert
from syncnorm.trainer.weights.loading import InitialWeights
from syncnorm.trainer.weights.sources import read_source
from tests.helpers.norm.frozen_layers import randomized

RUNNING_KINDS = [name for name, kind in KINDS.items() if kind.running_statistics]
Case = tuple[nn.Module, Callable[[nn.Module], Tensor]]


def _torchvision() -> Case:
    """weights_backbone is what makes torchvision freeze; its builder is called as with weights, which lie elsewhere."""
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None, trainable_layers=3)
    model, images = FasterRCNN(backbone, num_classes=3), torch.rand(1, 3, 64, 96)
    return model, lambda model: torch.cat([one.flatten() for one in model.backbone(images).values()])


def _hugging_face() -> Case:
    from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

    stages = {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "layer_type": "basic"}
    sizes = {"layers": 1, "attention_heads": 2, "ffn_dim": 32}
    transformer = {f"{part}_{name}": size for part in ("encoder", "decoder") for name, size in sizes.items()}
    config = DetrConfig(
        backbone_config=ResNetConfig(**stages, out_features=["stage4"]),
        d_model=32,
        num_queries=5,
        num_labels=3,
        **transformer,
    )
    images = torch.rand(1, 3, 64, 96)
    return DetrForObjectDetection(config), lambda model: model(pixel_values=images).logits


def _timm() -> Case:
    import timm
    from timm.layers import freeze_batch_norm_2d

    model = freeze_batch_norm_2d(timm.create_model("test_resnet", num_classes=4))
    images = torch.rand(1, 3, 64, 96)
    return model, lambda model: model(images)


CASES = {"torchvision": _torchvision, "Hugging Face": _hugging_face, "timm": _timm}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    torch.manual_seed(0)
    model, run = CASES[request.param]()
    assert any("Frozen" in type(layer).__name__ for layer in model.modules())
    return _trained(model).eval(), run


def _trained(model: nn.Module) -> nn.Module:
    for layer in model.modules():
        if "Frozen" in type(layer).__name__:
            randomized(layer)
            layer.get_buffer("running_var").uniform_(0.5, 2)  # so that a deep network does not overflow
    return model


def _frozen(model: nn.Module) -> list[str]:
    return [path for path, layer in model.named_modules() if "Frozen" in type(layer).__name__]


@torch.no_grad()
def test_every_frozen_layer_converts_and_computes_the_same(case: Case) -> None:
    model, run = case
    expected, paths = run(model), _frozen(model)

    for kind in RUNNING_KINDS:
        converted, replaced = norm.convert(copy.deepcopy(model), kind)

        assert [item.path for item in replaced] == paths, kind
        # fp32, some 20 layers: torchvision scales and shifts, torch subtracts and divides.
        torch.testing.assert_close(run(converted.eval()), expected, rtol=1e-4, atol=1e-4)
        back = copy.deepcopy(model)
        back.load_state_dict(norm.plain_state_dict(converted))
        torch.testing.assert_close(run(back), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_every_frozen_layer_folds(case: Case) -> None:
    model, run = case

    folded, report = norm.fold(model)

    assert [(item.path, item.reason) for item in report] == [(path, None) for path in _frozen(model)]
    torch.testing.assert_close(run(folded), run(model), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_frozen_layers_of_timm_with_an_activation_convert() -> None:
    import timm
    from timm.layers import FrozenBatchNormAct2d, freeze_batch_norm_2d

    model, images = (
        _trained(freeze_batch_norm_2d(timm.create_model("test_efficientnet"))).eval(),
        torch.rand(1, 3, 64, 96),
    )
    paths = [path for path, layer in model.named_modules() if type(layer) is FrozenBatchNormAct2d]

    converted, replaced = norm.convert(copy.deepcopy(model), "sync_batch")

    assert [item.path for item in replaced] == paths
    torch.testing.assert_close(converted.eval()(images), model(images), rtol=1e-4, atol=1e-4)


def test_overrides_keep_the_backbone_of_a_detector_frozen() -> None:
    from torchvision.models.detection.fcos import FCOS

    model, _ = _torchvision()
    detector = FCOS(model.backbone, num_classes=3)

    converted, replaced = norm.convert(
        detector, "sync_batch", overrides=[{"match": "backbone.*", "kind": "frozen_batch"}]
    )

    to = {item.path.split(".")[0]: item.after for item in replaced}
    assert to == {"backbone": "FrozenBatchNorm", "head": "SyncBatchNorm"}
    assert not any(name.startswith("backbone.body.bn1") for name, _ in converted.named_parameters())


def test_an_audit_of_a_frozen_detector_warns_of_nothing() -> None:
    model, _ = _torchvision()

    assert norm.audit(_trained(model), [torch.rand(3, 64, 96)], batch_size=1, workers=2) == []


def test_a_strict_checkpoint_of_a_frozen_detector_loads_after_conversion() -> None:
    model, run = _torchvision()
    state = _trained(model).state_dict()

    for kind in RUNNING_KINDS:
        converted, _ = norm.convert(_torchvision()[0], kind)

        converted.load_state_dict(state)

        torch.testing.assert_close(run(converted.eval()), run(model.eval()), rtol=1e-4, atol=1e-4)


def test_folding_follows_hugging_face_s_own_classes() -> None:
    """Each model file has a copy of the class."""
    import importlib

    for name in (
        "detr",
        "conditional_detr",
        "deformable_detr",
        "table_transformer",
        "rt_detr",
        "d_fine",
        "grounding_dino",
    ):
        module: Any = importlib.import_module(f"transformers.models.{name}.modeling_{name}")
        frozen = next(getattr(module, each) for each in dir(module) if each.endswith("FrozenBatchNorm2d"))

        _, report = norm.fold(nn.Sequential(nn.Conv2d(3, 4, 1), frozen(4)))

        assert [item.into for item in report] == ["0"], name


@pytest.mark.parametrize("kind", ["sync_batch", "frozen_batch", "batch_renorm", "group"])
def test_a_job_starts_a_frozen_network_from_weights_in_a_file(kind: str, tmp_path: Path) -> None:
    from torchvision.models import resnet18
    from torchvision.ops.misc import FrozenBatchNorm2d

    source = _trained(resnet18(num_classes=4, norm_layer=FrozenBatchNorm2d))
    torch.save(source.state_dict(), tmp_path / "w")
    model = {"class_path": "torchvision.models.resnet18", "init_from": {"file": str(tmp_path / "w")}}
    spec = read_spec({"name": "x", "model": model, "data": {"name": "digits", "batch_size": 8}, "norm": {"kind": kind}})
    assert spec.model.init_from is not None
    origin = read_source(spec.model.init_from, WeightAccess(), "", tmp_path / "staged")
    network, _ = convert(resnet18(num_classes=4, norm_layer=FrozenBatchNorm2d), spec, None)
    weights = InitialWeights(tmp_path / "staged", origin, spec)

    weights.load(network)

    state = network.state_dict()
    lost = {name for name in source.state_dict() if name not in state}
    assert {name.rpartition(".")[2] for name in lost} == ({"running_mean", "running_var"} if kind == "group" else set())
    assert all(torch.equal(state[name], tensor) for name, tensor in source.state_dict().items() if name not in lost)
    assert [one.code for one in weights.findings] == (["weights_lost"] if kind == "group" else [])
