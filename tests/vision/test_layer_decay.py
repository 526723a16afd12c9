"""Learning rates that fall from layer to layer: as timm sets them, and for torchvision's networks, which timm leaves
alone."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from torch import nn

from syncnorm import norm
from syncnorm.trainer.contract.spec import OptimizerSpec
from syncnorm.trainer.training.parameters.depth import layer_numbers
from syncnorm.trainer.training.parameters.groups import parameter_groups

timm = pytest.importorskip("timm")
timm_optim = pytest.importorskip("timm.optim")
torchvision = pytest.importorskip("torchvision")


def rates(model: nn.Module) -> dict[str, float]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, OptimizerSpec(lr=1.0, layer_decay=0.75))
    return {names[parameter]: group["lr"] for group in groups for parameter in group["params"]}


def timms(model: nn.Module) -> dict[str, float]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups: list[dict[str, Any]] = timm_optim.param_groups_layer_decay(model, layer_decay=0.75)
    return {names[parameter]: group["lr_scale"] for group in groups for parameter in group["params"]}


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18", "convnext_atto", "swin_tiny_patch4_window7_224"])
def test_rates_are_those_of_timm(name: str) -> None:
    model = timm.create_model(name, num_classes=3)

    assert rates(model) == pytest.approx(timms(model), rel=1e-12)


def test_a_converted_model_and_one_inside_of_another_keep_timms_layers() -> None:
    model = timm.create_model("resnet18", num_classes=0)
    wanted = {name: rate * 0.75 for name, rate in timms(model).items()}  # the head comes behind
    converted, _ = norm.convert(model, "sync_batch")

    found = rates(nn.ModuleDict({"backbone": converted, "head": nn.Linear(512, 2)}))

    assert {name: found[f"backbone.{name}"] for name in wanted} == pytest.approx(wanted, rel=1e-12)
    assert found["head.weight"] == 1.0


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("resnet18", 1 + 8 + 1),
        ("vit_b_16", 1 + 12 + 1),
        ("convnext_tiny", 1 + 3 + 18 + 1),
        ("alexnet", 8),
        ("vgg11_bn", 11),
    ],
)
def test_layers_of_torchvisions_networks_are_their_blocks(name: str, layers: int) -> None:
    model = getattr(torchvision.models, name)()
    numbers = layer_numbers(model)

    inside = layer_numbers(nn.Sequential(model, nn.Linear(1000, 2)))

    assert set(numbers.values()) == set(range(layers))
    assert Counter(numbers.values())[layers - 1] == 2  # the classifier's weight and bias
    if name not in ("alexnet", "vgg11_bn"):  # these have no blocks by which a network in a Sequential is known
        assert {f"0.{path}": number for path, number in numbers.items()} | {
            "1.weight": layers,
            "1.bias": layers,
        } == inside
