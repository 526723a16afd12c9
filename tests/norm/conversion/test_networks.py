"""Kinds that convert a network as a whole, and kinds that are the activation too."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from syncnorm import norm
from syncnorm.norm.conversion.fixup import FixupLayer, ScalarBias, scalars
from syncnorm.norm.layers.evo_norm import EvoNormS0
from syncnorm.norm.layers.filter_response_norm import FilterResponseNorm
from tests.helpers.norm.models import BasicBlock, Bottleneck, ResNet, vgg
from tests.helpers.norm.splits import relative_error


def _wide_resnet(block: type) -> nn.Module:
    torch.manual_seed(0)
    return norm.convert(ResNet(block), "fixup")[0]


@pytest.mark.parametrize(("block", "convs", "exponent"), [(BasicBlock, 2, -1 / 2), (Bottleneck, 3, -1 / 4)])
def test_fixup_scales_by_depth_and_zeroes_the_last_convolution(block: type, convs: int, exponent: float) -> None:
    model = _wide_resnet(block)
    branches = [model.layer1[0], model.layer1[1], model.layer2[0], model.layer2[1]]

    for branch in branches:
        last = getattr(branch, f"conv{convs}").layer.weight
        assert not last.any()
    for name in [f"conv{i}" for i in range(1, convs)]:
        scaled = [
            getattr(branch, name).layer.weight.flatten()
            * math.sqrt(getattr(branch, name).layer.weight[:, 0].numel() / 2)
            for branch in branches
        ]
        # the standard deviation of some thousand samples is known to a few percent
        assert torch.cat(scaled).std().item() == pytest.approx(len(branches) ** exponent, rel=0.1)
    assert not model.fc.layer.weight.any()
    assert not model.fc.layer.bias.any()


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_fixup_network_has_no_normalization_and_starts_at_the_uniform_prediction(block: type) -> None:
    model = _wide_resnet(block)

    y = model(torch.randn(4, 3, 8, 8))

    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    assert torch.equal(y, torch.zeros(4, 10))


def test_fixup_scalars_stand_where_the_paper_has_them() -> None:
    model = _wide_resnet(BasicBlock)

    first, second = model.layer2[0].conv1, model.layer2[0].conv2
    assert isinstance(first, FixupLayer)
    assert first.scale is None
    assert second.scale is not None
    assert model.layer2[0].downsample[0].bias_in is first.bias_in
    assert isinstance(model.bn1, ScalarBias)
    # 4 blocks: 2 biases a convolution and a multiplier; the stem's bias and the classifier's
    assert len(scalars(model)) == 4 * 5 + 2


def test_fixup_network_trains() -> None:
    model, x, target = _wide_resnet(BasicBlock), torch.randn(16, 3, 8, 8), torch.arange(16) % 10
    optimizer = torch.optim.Adam(model.parameters(), 0.01)

    losses = []
    for _ in range(30):
        loss = nn.functional.cross_entropy(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    assert losses[0] == pytest.approx(math.log(10), rel=1e-5)
    assert losses[-1] < 0.5 * losses[0]


def test_fixup_without_affine_is_initialisation_alone() -> None:
    model, _ = norm.convert(ResNet(), "fixup", affine=False)

    assert scalars(model) == []
    assert not model.layer1[0].conv2.weight.any()


def test_fixup_of_a_described_block() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.body(x)

    norm.register_residual_block(Block, lambda block: norm.ResidualBranch((block.body[0], block.body[3]), None))

    model, _ = norm.convert(nn.Sequential(Block(), Block()), "fixup")

    assert not model[1].body[3].layer.weight.any()
    assert isinstance(model[0].body[1], nn.Identity)


def test_fixup_folds_its_scalars_where_exact() -> None:
    model, x = _wide_resnet(Bottleneck).eval(), torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)

    folded, report = norm.fold(model)

    by_path = {item.path: item for item in report}
    assert type(folded.layer1[0].conv1) is nn.Conv2d
    # a 3x3 convolution pads with zeros behind the bias in front of it
    assert "zero padding" in (by_path["layer1.0.conv2"].reason or "")
    assert relative_error(folded(x).detach(), model(x).detach()) < 1e-5


@pytest.mark.parametrize("kind", ["fixup", "selu"])
def test_network_kinds_take_no_overrides(kind: str) -> None:
    with pytest.raises(ValueError, match=f"{kind} converts a network as a whole"):
        norm.convert(ResNet(), kind, overrides=[{"match": "bn1", "kind": "group"}])
    with pytest.raises(ValueError, match=f"{kind} converts a network as a whole"):
        norm.convert(ResNet(), "group", overrides=[{"match": "bn1", "kind": kind}])


def test_selu_exchanges_activations_dropout_and_weights() -> None:
    model, _ = norm.convert(vgg(), "selu")

    assert [type(model[i]) for i in (1, 2, 9)] == [nn.Identity, nn.SELU, nn.AlphaDropout]
    assert model[9].p == 0.1
    assert model[0].bias is not None
    # N(0, 1 / fan_in), 1152 samples
    assert model[4].weight.std().item() == pytest.approx(1 / math.sqrt(8 * 9), rel=0.1)


def test_selu_keeps_mean_and_variance_through_many_layers() -> None:
    layers = [part for _ in range(16) for part in (nn.Linear(256, 256), nn.BatchNorm1d(256), nn.ReLU())]
    model, _ = norm.convert(nn.Sequential(*layers), "selu")

    y = model(torch.randn(512, 256))

    # the fixed point is (0, 1); 16 layers of 256 random units wander around it
    assert abs(y.mean().item()) < 0.1
    assert 0.7 < y.var().item() < 1.4


@pytest.mark.parametrize(("kind", "layer"), [("evo_s0", EvoNormS0), ("filter_response", FilterResponseNorm)])
def test_kinds_that_are_the_activation_replace_it(kind: str, layer: type) -> None:
    model, replaced = norm.convert(vgg(), kind)

    assert isinstance(model[1], layer)
    assert model[1].activation
    assert isinstance(model[2], nn.Identity)
    assert {"path": "2", "from": "ReLU", "to": "Identity", "note": f"{kind} is the activation"} in [
        item.as_json() for item in replaced
    ]


def test_activation_in_front_is_replaced_too() -> None:
    model, _ = norm.convert(
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)), "evo_s0"
    )

    assert isinstance(model[1], nn.Identity)
    assert model[2].activation


def test_without_an_activation_beside_it_the_layer_has_none() -> None:
    model, _ = norm.convert(ResNet(), "evo_s0")

    assert not model.layer2[0].downsample[1].activation
    assert not model.layer1[0].bn2.activation


def test_activation_in_use_elsewhere_stays_and_is_reported() -> None:
    model, replaced = norm.convert(ResNet(), "evo_s0")

    assert isinstance(model.layer1[0].relu, nn.ReLU)
    notes = {item.path: item.note for item in replaced}
    assert "used elsewhere too" in notes["layer1.0.bn1"]
    assert isinstance(model.relu, nn.Identity)
