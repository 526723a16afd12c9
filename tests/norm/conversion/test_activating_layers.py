"""Layers of timm that are normalization and activation in one formula: read, converted, audited and folded."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from syncnorm import norm
from tests.helpers.norm.evo_norm import EvoNorm2dB0, EvoNorm2dS0

X = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))
KINDS = ("sync_batch", "group", "evo_s0", "none")
Make = Callable[[], nn.Module]
both = pytest.mark.parametrize("layer", [EvoNorm2dB0, EvoNorm2dS0])


def network(layer: nn.Module) -> nn.Module:
    """With values that training would give."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.uniform_(0.5, 2)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), layer, nn.Conv2d(8, 2, 1))
    with torch.no_grad():
        model.train()(X)
    return model.eval()


@both
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_converted_with_a_note_and_comes_back(layer: Callable[[int], nn.Module], kind: str) -> None:
    model = network(layer(8))
    expected, state = model(X), {name: value.clone() for name, value in model.state_dict().items()}

    converted, replaced = norm.convert(model, kind)
    converted(X)
    is_same = layer is EvoNorm2dS0 and kind == "evo_s0"

    assert [item.path for item in replaced] == ["1"]
    assert ("its own activation becomes" in replaced[0].note) is not is_same
    reverted = norm.revert(converted)
    assert torch.equal(reverted(X), expected)
    assert all(torch.equal(value, state[name]) for name, value in reverted.state_dict().items())


def test_the_formula_of_timms_evo_norm_is_kept() -> None:
    model = network(EvoNorm2dS0(8, groups=4))
    expected = model(X)

    converted, replaced = norm.convert(model, "evo_s0", num_groups=4)

    torch.testing.assert_close(converted(X), expected, rtol=1e-5, atol=1e-5)  # fp32
    assert "groups of channels" not in replaced[0].note
    assert "its 4 groups of channels are 2 now" in norm.convert(model, "evo_s0", num_groups=2)[1][0].note


def test_the_missing_running_mean_is_named() -> None:
    model = network(EvoNorm2dB0(8))
    variance = model[1].running_var.clone()

    converted, replaced = norm.convert(model, "sync_batch")

    assert "no running mean, which now starts at 0" in replaced[0].note
    assert torch.equal(converted[1].running_var, variance)
    assert torch.equal(converted[1].running_mean, torch.zeros(8))


@pytest.mark.parametrize(
    "layer, kind", [(lambda: EvoNorm2dB0(8), "sync_batch"), (lambda: EvoNorm2dS0(8, groups=2), "evo_s0")]
)
def test_weights_for_the_original_are_refused_where_it_computes_something_else(layer: Make, kind: str) -> None:
    converted, _ = norm.convert(network(layer()), kind)

    with pytest.raises(ValueError, match="must compute what its original class can"):
        norm.plain_state_dict(converted)


def test_statistics_of_one_worker_are_found_and_a_bias_before_is_not_lost() -> None:
    found = norm.audit(network(EvoNorm2dB0(8)), X, batch_size=2, workers=4)

    assert {item.code for item in found if item.path == "1"} == {"statistics_of_one_worker"}


@both
@pytest.mark.parametrize("apply_act", [True, False])
def test_folding_names_it_and_keeps_the_function(layer: Callable[..., nn.Module], apply_act: bool) -> None:
    model = network(layer(8, apply_act=apply_act))

    folded, report = norm.fold(model)

    assert [(item.path, item.into) for item in report] == [("1", None)]
    assert torch.equal(folded(X), model(X))


class Square(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x


def test_source_of_a_user_keeps_its_own_activation() -> None:
    """is_activation is for formulas: a layer that applies a module behind it says nothing of the kind."""

    class Own(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).square()

    norm.register_source(Own, lambda layer: norm.Source("batch", 8, 2, layer.eps, affine=True, tail=(Square(),)))
    _, replaced = norm.convert(nn.Sequential(nn.Conv2d(3, 8, 3), Own(8)), "sync_batch")

    assert "activation" not in replaced[0].note
