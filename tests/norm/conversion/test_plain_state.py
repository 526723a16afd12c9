"""The state_dict of a converted model loads strictly into the model it was made of, and gives the same answers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from syncnorm import norm
from tests.helpers.norm.models import MODELS, ResNet, trained, vgg
from tests.helpers.norm.splits import relative_error

PLAIN = {
    "none",
    "batch",
    "sync_batch",
    "frozen_batch",
    "batch_renorm",
    "sync_batch_renorm",
    "ghost_batch",
    "noisy_batch",
    "weight",
}
"""Kinds that batch normalization can stand for in eval mode."""
REFUSED = {
    "group": "a GroupNorm, normalizes with statistics of each sample",
    "layer": "a GroupNorm, normalizes with statistics of each sample",
    "instance": "an InstanceNorm, normalizes with statistics of each sample",
    "weight_standardization": "a GroupNorm, normalizes with statistics of each sample",
    "filter_response": "a FilterResponseNorm, normalizes with statistics of each sample and has a learned threshold",
    "evo_s0": "an EvoNormS0, normalizes with statistics of each sample and is the activation, too",
    "box_cox": "a BoxCox, raises values to a learned exponent",
    "selu": "a SELU, is another activation",
    "fixup": "a ScalarBias, adds a learned number before the activation",
}


def _moved(model: nn.Module) -> nn.Module:
    """As if it had been trained: nothing is where it started."""
    trained(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def test_every_kind_is_loadable_or_refused() -> None:
    assert REFUSED.keys() | PLAIN == norm.kinds().keys()
    assert not REFUSED.keys() & PLAIN


@pytest.mark.parametrize("kind", sorted(PLAIN))
@pytest.mark.parametrize("name", MODELS)
def test_plain_state_loads_strictly_and_answers_the_same(name: str, kind: str) -> None:
    make, shape = MODELS[name]
    plain, x = trained(make()).eval(), torch.randn(shape)
    model = _moved(norm.convert(copy.deepcopy(plain), kind)[0])

    plain.load_state_dict(norm.plain_state_dict(model))

    assert relative_error(plain(x).detach(), model(x).detach()) < 1e-5  # fp32


@pytest.mark.parametrize("kind", REFUSED)
def test_kinds_that_compute_something_else_are_refused_by_layer(kind: str) -> None:
    model, _ = norm.convert(ResNet(), kind)

    with pytest.raises(ValueError, match=f"but .* {REFUSED[kind]}.*use an exported form"):
        norm.plain_state_dict(model)


def test_eps_of_the_conversion_moves_into_the_scale() -> None:
    plain, x = trained(ResNet()).eval(), torch.randn(4, 3, 8, 8)
    model = _moved(norm.convert(copy.deepcopy(plain), "sync_batch", eps=0.1)[0])

    plain.load_state_dict(norm.plain_state_dict(model))

    assert plain.bn1.eps == 1e-5
    assert torch.equal(plain.bn1.running_var, model.bn1.running_var)
    assert relative_error(plain(x).detach(), model(x).detach()) < 1e-5


def test_layers_without_affine_leave_that_of_the_original_neutral() -> None:
    plain, x = trained(ResNet()).eval(), torch.randn(4, 3, 8, 8)
    model = _moved(norm.convert(copy.deepcopy(plain), "batch", affine=False)[0])

    plain.load_state_dict(norm.plain_state_dict(model))

    assert relative_error(plain(x).detach(), model(x).detach()) < 1e-5


def test_affine_that_the_original_lacks_is_refused() -> None:
    model = _moved(norm.convert(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False)), "batch")[0])
    norm.plain_state_dict(model)  # "keep" leaves affine as it is

    model = _moved(norm.convert(model, "batch", affine=True)[0])

    with pytest.raises(ValueError, match="but 1 has a weight, and its original BatchNorm2d has none"):
        norm.plain_state_dict(model)


def test_same_kind_as_the_original_keeps_its_parameters() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(4, 8), nn.Conv2d(8, 4, 1), nn.InstanceNorm2d(4, affine=True))
    x = torch.randn(2, 3, 8, 8)
    overrides = [{"match": "3", "kind": "instance"}]
    model = _moved(norm.convert(copy.deepcopy(plain), "group", num_groups=4, overrides=overrides)[0])

    plain.load_state_dict(norm.plain_state_dict(model))

    assert relative_error(plain(x).detach(), model(x).detach()) < 1e-5


def test_other_groups_than_the_original_are_refused() -> None:
    model, _ = norm.convert(nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(4, 8)), "group", num_groups=2)

    with pytest.raises(ValueError, match="but 1 a GroupNorm, normalizes"):
        norm.plain_state_dict(model)


@pytest.mark.parametrize("kind", ["weight", "fixup"])
def test_weights_without_scalars_are_plain(kind: str) -> None:
    plain, x = trained(ResNet()).eval(), torch.randn(4, 3, 8, 8)
    model = _moved(norm.convert(copy.deepcopy(plain), kind, affine=False)[0])

    plain.load_state_dict(norm.plain_state_dict(model))

    assert relative_error(plain(x).detach(), model(x).detach()) < 1e-5


def test_bias_before_an_activation_is_refused() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.ReLU(), nn.BatchNorm2d(4))
    model = _moved(norm.convert(plain, "weight")[0])

    with pytest.raises(ValueError, match=r"but 0 learned a bias that its original Conv2d lacks.*affine=False"):
        norm.plain_state_dict(model)


def test_model_that_was_never_converted_gives_its_own_state() -> None:
    model = vgg()

    found = norm.plain_state_dict(model)

    assert {name: value.data_ptr() for name, value in found.items()} == {
        name: value.data_ptr() for name, value in model.state_dict().items()
    }


def test_model_that_is_one_layer() -> None:
    plain, x = trained(nn.Sequential(nn.BatchNorm2d(3)))[0].eval(), torch.randn(2, 3, 4, 4)
    model = _moved(norm.convert(copy.deepcopy(plain), "frozen_batch")[0])

    plain.load_state_dict(norm.plain_state_dict(model))

    assert relative_error(plain(x).detach(), model(x).detach()) < 1e-5


def test_conversion_is_left_as_it_is() -> None:
    model, _ = norm.convert(ResNet(), "sync_batch_renorm")
    before = {name: value.clone() for name, value in model.state_dict().items()}

    norm.plain_state_dict(model)

    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert type(model.bn1) is norm.SyncBatchRenorm
