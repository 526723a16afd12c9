"""Conversion of networks as MONAI, timm and Hugging Face build them."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from syncnorm import norm
from syncnorm.norm.layers.evo_norm import EvoNormS0
from syncnorm.norm.layers.filter_response_norm import FilterResponseNorm
from syncnorm.norm.reading.elementwise import effect

ACTIVATING = {"evo_s0": EvoNormS0, "filter_response": FilterResponseNorm}
RUNNING_KINDS = ("sync_batch", "ghost_batch", "batch_renorm")


def _monai(name: str, **arguments: object) -> nn.Module:
    from monai.networks import nets

    model = getattr(nets, name)(spatial_dims=3, in_channels=1, out_channels=2, **arguments)
    assert isinstance(model, nn.Module)
    return model


SIZES = {"channels": (4, 8, 16), "strides": (2, 2)}
# The network, its normalizations, and those behind which no activation of their own is, as in front of a sum.
VOLUMES: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "UNet": (lambda: _monai("UNet", **SIZES, num_res_units=2, norm="batch"), 9, 0),
    "UNet, instance": (lambda: _monai("UNet", **SIZES, norm="instance"), 4, 0),
    "UNet, dropout": (lambda: _monai("UNet", **SIZES, norm="batch", dropout=0.1), 4, 0),
    "BasicUNet": (lambda: _monai("BasicUNet", features=(4, 4, 8, 8, 16, 4)), 18, 0),
    "AttentionUnet": (lambda: _monai("AttentionUnet", **SIZES), 16, 4),
}


@pytest.mark.parametrize("kind", ACTIVATING)
@pytest.mark.parametrize("name", VOLUMES)
def test_networks_of_monai_are_normalized(name: str, kind: str) -> None:
    make, total, bare = VOLUMES[name]
    x = torch.randn(1, 1, 32, 32, 32)

    model, replaced = norm.convert(make(), kind)

    layers = [module for module in model.modules() if isinstance(module, ACTIVATING[kind])]
    assert (len(layers), sum(not layer.activation for layer in layers)) == (total, bare)
    assert sum("no activation is next to it" in item.note for item in replaced) == bare
    nothing = [item for item in norm.audit(model, x, batch_size=1, workers=4) if item.code == "normalizes_nothing"]
    assert [item.numbers["layers"] for item in nothing] == ([bare] if bare and kind == "evo_s0" else [])
    model(x).sum().backward()
    assert all(parameter.grad is not None for layer in layers for parameter in layer.parameters())


@pytest.mark.parametrize("kind", ["none", "weight"])
def test_network_of_monai_with_activations_in_place_keeps_its_shortcuts(kind: str) -> None:
    model, x = _monai("SegResNet", init_filters=8).eval(), torch.randn(1, 1, 16, 16, 16)
    assert any(getattr(module, "inplace", False) for module in model.modules())

    converted, _ = norm.convert(model, kind)
    y = converted(x)
    for module in converted.modules():
        if getattr(module, "inplace", False):
            module.inplace = False

    assert torch.equal(y, converted(x))


IMAGES = ("test_efficientnet", "test_byobnet", "mobilenetv3_small_050", "regnety_002", "resnetv2_50")


def _timm(name: str) -> nn.Module:
    import timm

    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3)
    with torch.no_grad():
        model.train()(torch.randn(2, 3, 64, 64))  # so that its statistics are not those it was built with
    assert isinstance(model, nn.Module)
    return model.eval()


@pytest.fixture(scope="module", params=IMAGES)
def network(request: pytest.FixtureRequest) -> nn.Module:
    return _timm(request.param)


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(2, 3, 64, 64)


@pytest.mark.parametrize("kind", RUNNING_KINDS)
def test_checkpoints_of_timm_load_after_a_conversion_and_back(network: nn.Module, kind: str, x: Tensor) -> None:
    plain = copy.deepcopy(network)
    converted, _ = norm.convert(copy.deepcopy(network), kind)
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.mul_(1.01)

    converted.load_state_dict(plain.state_dict())
    torch.testing.assert_close(converted(x), plain(x), rtol=1e-4, atol=1e-5)  # fp32 over some fifty layers
    network_again = copy.deepcopy(network)
    network_again.load_state_dict(converted.state_dict())

    assert torch.equal(network_again(x), plain(x))


@pytest.mark.parametrize("kind", ["evo_s0", "filter_response", "selu", "none", "group"])
def test_networks_of_timm_train_and_revert_exactly(network: nn.Module, kind: str, x: Tensor) -> None:
    model = copy.deepcopy(network)
    state, expected = copy.deepcopy(model.state_dict()), model(x)

    converted, replaced = norm.convert(model, kind)
    converted.train()(x).sum().backward()
    activations = [module for module in converted.modules() if effect(module) == "activation"]
    reverted = norm.revert(converted.eval())
    reverted.load_state_dict(state)

    if kind in ACTIVATING:
        assert any(f"{kind} is the activation, and its own" in item.note for item in replaced)
        assert not any("stays" in item.note for item in replaced)
    if kind == "selu":
        assert {type(module) for module in activations} == {nn.SELU}
    assert torch.equal(reverted(x), expected)


def test_looking_at_a_network_of_timm_moves_no_counter(network: nn.Module, x: Tensor) -> None:
    model = copy.deepcopy(network).train()
    state = copy.deepcopy(model.state_dict())

    norm.audit(model, x, batch_size=2, workers=2)
    norm.fold(model)
    norm.revert(norm.convert(model, "evo_s0")[0])

    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


FOLDED = {"test_efficientnet": 13, "test_byobnet": 14, "mobilenetv3_small_050": 34, "regnety_002": 44}


@pytest.mark.parametrize("kind", ["", "sync_batch"])
@pytest.mark.parametrize("name", FOLDED)
def test_networks_of_timm_fold_completely(name: str, kind: str, x: Tensor) -> None:
    model = _timm(name)
    expected = model(x)
    if kind:
        model, _ = norm.convert(model, kind)

    folded, report = norm.fold(model)

    assert len(report) == FOLDED[name]
    assert all(item.into is not None for item in report)
    torch.testing.assert_close(folded(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet50_gn", "test_resnet"])
def test_every_normalization_of_timm_is_read(name: str, x: Tensor) -> None:
    model = _timm(name)
    expected = model(x)

    converted, replaced = norm.convert(model, "instance")

    assert replaced
    assert torch.equal(norm.revert(converted)(x), expected)


def test_activations_of_hugging_face_are_known() -> None:
    from transformers.activations import ACT2FN

    stays = {"linear", "sigmoid", "softmax", "laplace"}  # laplace lies between 0 and 1
    effects = {name: effect(ACT2FN[name]) for name in ACT2FN}

    assert {name for name, found in effects.items() if found != "activation"} <= stays
    assert effects["gelu_new"] == effects["quick_gelu"] == effects["xielu"] == "activation"
    assert effects["sigmoid"] == effects["laplace"] == "gate"


def test_a_network_of_hugging_face_is_audited_by_its_keywords() -> None:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], layer_type="basic")
    model, _ = norm.convert(ResNetForImageClassification(config), "sync_batch")

    found = norm.audit(model, {"pixel_values": torch.randn(1, 3, 64, 64)}, batch_size=1, workers=1)

    assert "forward_fails" not in {item.code for item in found}
    assert {item.code for item in found} >= {"few_values_per_statistic"}


@pytest.mark.parametrize("name", ["Bit", "PoolFormer"])
def test_group_normalization_of_hugging_face_is_converted(name: str, x: Tensor) -> None:
    import transformers

    sizes = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}
    more = {"embedding_size": 8, "num_groups": 4} if name == "Bit" else {}
    model = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**sizes, **more)).eval()
    expected = model(x)[0]

    converted, replaced = norm.convert(model, "sync_batch")
    converted.train()(x)[0].sum().backward()

    assert len(replaced) == (13 if name == "Bit" else 8)
    assert torch.equal(norm.revert(converted).eval()(x)[0], expected)


EVO_NORMS = [f"EvoNorm2d{name}" for name in ("B0", "B1", "B2", "S0", "S0a", "S1", "S1a", "S2", "S2a")]


@pytest.mark.parametrize("apply_act", [True, False])
@pytest.mark.parametrize("name", [*EVO_NORMS, "FilterResponseNormTlu2d", "FilterResponseNormAct2d"])
def test_timms_layers_that_are_the_activation_are_converted(name: str, apply_act: bool) -> None:
    from timm import layers

    torch.manual_seed(0)
    layer, x = getattr(layers, name)(32, apply_act=apply_act), torch.randn(2, 3, 8, 8)
    model = nn.Sequential(nn.Conv2d(3, 32, 1), layer, nn.Conv2d(32, 2, 1))
    model.train()(x)
    expected = model.eval()(x)

    assert [item.path for item in norm.fold(model)[1]] == ["1"]
    assert "forward_fails" not in {item.code for item in norm.audit(model, x, batch_size=2, workers=2)}
    for kind in ("sync_batch", "group", "evo_s0", "filter_response", "none"):
        model, replaced = norm.convert(model, kind)
        model.train()(x).sum().backward()
        assert [item.path for item in replaced] == ["1"]
    # S0 comes back as trained; running_var of B moves with sync_batch
    assert type(norm.revert(model)[1]).__name__ == name
    if name not in ("EvoNorm2dB0", "EvoNorm2dB1", "EvoNorm2dB2"):
        assert torch.equal(model.eval()(x), expected)
