from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.testing import assert_close

from syncnorm import norm
from syncnorm.norm import KINDS, SyncBatchNorm
from syncnorm.norm.torch_compat import BatchNormBase
from tests.helpers.norm.models import MODELS, ResNet, Shared, trained, vgg

# Kinds that put one layer in the place of another, and those among them with running statistics.
LAYER_KINDS = [name for name, kind in KINDS.items() if kind.scope == "layer"]
RUNNING_KINDS = [name for name in LAYER_KINDS if KINDS[name].running_statistics]


def _classes(model: nn.Module) -> dict[str, type]:
    return {path: type(module) for path, module in model.named_modules(remove_duplicate=False)}


# fixup wants residual blocks, selu activations that are modules.
REFUSED = {
    **{("fixup", name): "needs residual blocks" for name in ("vgg", "lstm", "shared")},
    ("selu", "lstm"): "needs every activation to be a module",
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_convert_then_revert_is_exact(name: str, kind: str) -> None:
    if (kind, name) in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[kind, name]):
            norm.convert(MODELS[name][0](), kind)
        return
    make, shape = MODELS[name]
    model, x = trained(make()).eval(), torch.randn(shape)
    classes, expected = _classes(model), model(x)
    state = {key: value.clone() for key, value in model.state_dict().items()}

    converted, replaced = norm.convert(model, kind)
    assert replaced
    if kind != "instance" or name not in ("vgg", "lstm"):  # whose heads have one position per channel
        assert converted(x).isfinite().all()
    reverted = norm.revert(converted)

    assert _classes(reverted) == classes
    assert torch.equal(reverted(x), expected)
    assert reverted.state_dict().keys() == state.keys()
    for key, value in reverted.state_dict().items():
        assert torch.equal(value, state[key]), key


@pytest.mark.parametrize("kind", RUNNING_KINDS)
def test_kinds_with_running_statistics_compute_the_same_in_eval(kind: str) -> None:
    model, x = trained(ResNet()).eval(), torch.randn(4, 3, 8, 8)
    expected = model(x)

    converted, _ = norm.convert(model, kind)

    # fp32 rounding, over ten layers: the layers multiply and add in another order.
    torch.testing.assert_close(converted(x), expected, rtol=1e-4, atol=1e-5)


def test_convert_reports_every_layer_by_path() -> None:
    _, replaced = norm.convert(vgg(), "group")

    assert [item.as_json() for item in replaced] == [
        {"path": "1", "from": "BatchNorm2d", "to": "GroupNorm"},
        {"path": "5", "from": "BatchNorm2d", "to": "GroupNorm"},
        {"path": "11", "from": "BatchNorm1d", "to": "GroupNorm"},
    ]


def test_shared_module_stays_shared() -> None:
    model, replaced = norm.convert(Shared(), "sync_batch")

    assert model.stem[1] is model.body["a"][0][1] is model.alias
    assert replaced[0].path == "stem.1"
    assert replaced[0].also == ("body.a.0.1", "alias")


def test_a_layer_by_itself_is_converted() -> None:
    layer, replaced = norm.convert(nn.BatchNorm2d(4), "layer")

    assert isinstance(layer, nn.GroupNorm)
    assert replaced[0].path == ""


def test_parameters_stay_the_same_objects() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    weight = model[1].weight

    converted, _ = norm.convert(model, "sync_batch")
    assert converted[1].weight is weight
    reverted = norm.revert(converted)

    assert reverted[1].weight is weight


def test_training_between_convert_and_revert_is_kept() -> None:
    model, _ = norm.convert(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), "sync_batch")
    model(torch.randn(4, 3, 5, 5)).square().sum().backward()
    torch.optim.SGD(model.parameters(), 0.1).step()
    expected = {key: value.clone() for key, value in model.state_dict().items()}

    reverted = norm.revert(model)

    assert type(reverted[1]) is nn.BatchNorm2d
    for key, value in reverted.state_dict().items():
        assert torch.equal(value, expected[key]), key
    assert reverted[1].num_batches_tracked == 1


def test_converting_twice_reverts_to_the_first() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))

    once, _ = norm.convert(model, "sync_batch")
    twice, replaced = norm.convert(once, "group")

    assert replaced[0].as_json() == {"path": "1", "from": "BatchNorm2d", "to": "GroupNorm"}
    assert type(norm.revert(twice)[1]) is nn.BatchNorm2d


def test_a_removed_layer_can_come_back_as_another_kind() -> None:
    model, _ = norm.convert(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), "none")

    again, _ = norm.convert(model, "sync_batch")

    assert type(again[1]) is SyncBatchNorm


def test_mode_dtype_and_arguments_survive() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, eps=1e-3, momentum=None)).double()
    model[1].eval()

    converted, _ = norm.convert(model, "sync_batch")

    layer = converted[1]
    assert isinstance(layer, SyncBatchNorm)
    assert not layer.training
    assert converted.training
    assert (layer.eps, layer.momentum) == (1e-3, None)
    assert layer.weight.dtype == layer.running_mean.dtype == torch.float64


@pytest.mark.parametrize(
    "kind", ["group", "instance", "filter_response", "evo_s0", "sync_batch", "batch_renorm", "box_cox"]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_layer_without_tensors_is_followed_by_one_in_the_dtype_of_the_model(kind: str, dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.InstanceNorm2d(4), nn.ReLU()).to(dtype)
    affine = {} if kind == "box_cox" else {"affine": True}

    converted, _ = norm.convert(model, kind, **affine)

    found = {tensor.dtype for tensor in converted[1].state_dict().values() if tensor.is_floating_point()}
    assert found == {dtype}
    assert converted(torch.randn(4, 3, 6, 6, dtype=dtype)).dtype == dtype


def test_arguments_of_the_new_layers_can_be_given() -> None:
    model, _ = norm.convert(vgg(), "sync_batch", eps=1e-3, momentum=None, affine=False)

    assert all(model[i].eps == 1e-3 and model[i].momentum is None for i in (1, 5, 11))
    assert all(model[i].weight is None and model[i].bias is None for i in (1, 5, 11))


def test_hooks_survive_and_their_handles_stay_valid() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    seen: list[type] = []
    handle = model[1].register_forward_hook(lambda module, *_: seen.append(type(module)))

    converted, _ = norm.convert(model, "sync_batch")
    converted(torch.randn(2, 3, 4, 4))
    reverted = norm.revert(converted)
    reverted(torch.randn(2, 3, 4, 4))
    handle.remove()
    reverted(torch.randn(2, 3, 4, 4))

    assert seen == [SyncBatchNorm, nn.BatchNorm2d]


class _Softplus(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.softplus(x)


def test_parametrizations_survive() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    parametrize.register_parametrization(model[1], "weight", _Softplus())
    original_class, expected = type(model[1]), model(x := torch.randn(2, 3, 4, 4))

    converted, _ = norm.convert(model, "sync_batch")

    assert parametrize.is_parametrized(converted[1], "weight")
    torch.testing.assert_close(converted(x), expected)
    reverted = norm.revert(converted)
    assert type(reverted[1]) is original_class
    assert torch.equal(reverted(x), expected)


def test_deepcopy_and_move_between_convert_and_revert() -> None:
    model = trained(ResNet()).eval()
    x = torch.randn(2, 3, 8, 8)
    expected = model(x).double()

    converted, _ = norm.convert(model, "sync_batch")
    reverted = norm.revert(copy.deepcopy(converted).double())

    assert all(value.dtype == torch.float64 for value in reverted.state_dict().values() if value.is_floating_point())
    # fp32 rounding of the expected value
    torch.testing.assert_close(reverted(x.double()), expected, rtol=1e-4, atol=1e-5)


def test_first_matching_override_wins() -> None:
    overrides = [
        {"match": "layer1.*", "kind": "group", "options": {"num_groups": 2}},
        {"match": "*.bn1", "kind": "none"},
    ]

    model, _ = norm.convert(ResNet(), "layer", overrides=overrides)

    assert isinstance(model.bn1, nn.GroupNorm)
    assert model.layer1[0].bn1.num_groups == 2
    assert isinstance(model.layer2[0].bn1, nn.Identity)
    assert model.layer2[0].bn2.num_groups == 1


def test_lazy_layers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"body\.0 is a LazyBatchNorm2d that has seen no input\. Run one batch"):
        norm.convert(nn.ModuleDict({"body": nn.Sequential(nn.LazyBatchNorm2d())}), "sync_batch")


def test_refused_second_conversion_leaves_the_first() -> None:
    model, _ = norm.convert(vgg(), "sync_batch")
    layer = model[1]

    with pytest.raises(ValueError, match="can't become group"):
        norm.convert(model, "group", num_groups=3)

    assert model[1] is layer
    assert type(norm.revert(model)[1]) is nn.BatchNorm2d


class _BatchNormAct(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(super().forward(x))


def test_subclass_of_unknown_behaviour_is_refused_and_nothing_is_changed() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), _BatchNormAct(3))

    with pytest.raises(ValueError, match=r"1 is a _BatchNormAct, which may do more than normalize"):
        norm.convert(model, "group")

    assert type(model[0]) is nn.BatchNorm2d


class _Wrapper(nn.Module):
    """Runs the forward of a network that is no part of it, as terratorch's does with one of timm."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._modules.update(network._modules)
        self.forward = network.forward


def test_wrapper_of_a_forward_runs_the_converted_layers() -> None:
    model = nn.Sequential(_Wrapper(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))))
    original, x = model[0].get_submodule("1"), torch.randn(2, 3, 4, 4)

    converted = norm.convert(model, "sync_batch")[0]
    ran: list[nn.Module] = []
    converted[0].get_submodule("1").register_forward_hook(lambda layer, *_: ran.append(layer))
    converted(x)
    assert [type(layer) for layer in ran] == [SyncBatchNorm]
    folded = norm.fold(converted.eval())[0]
    assert_close(folded(x), converted(x))
    assert norm.revert(converted)[0].get_submodule("1") is original
    assert original is converted[0].forward.__self__[1]


class _AnyDims(BatchNormBase):
    """As asteroid has it: of no number of dimensions."""

    def _check_input_dim(self, input: Tensor) -> None:
        assert 2 <= input.ndim <= 4


class _OwnDefaults(nn.BatchNorm2d):
    def __init__(self, num_features: int) -> None:
        super().__init__(num_features, eps=1e-3, momentum=0.01)


@pytest.mark.parametrize("layer_class", [_AnyDims, _OwnDefaults])
def test_subclass_that_computes_nothing_else_is_converted_and_back(layer_class: Callable[[int], Any]) -> None:
    model: Any = nn.Sequential(nn.Conv2d(3, 4, 1), layer_class(4))
    weight, eps, x = model[1].weight, model[1].eps, torch.randn(2, 3, 2, 2)
    expected = model(x)

    converted: Any = norm.convert(model, "sync_batch")[0]

    assert (type(converted[1]), converted[1].eps) == (norm.SyncBatchNorm, eps)
    assert converted[1].weight is weight
    assert_close(converted(x), expected)
    assert type(norm.revert(converted)[1]) is layer_class


def test_subclass_described_in_the_registry_keeps_its_activation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("syncnorm.norm.reading.readers._READERS", dict(_readers()))
    norm.register_source(
        _BatchNormAct,
        lambda layer: norm.Source("batch", layer.num_features, 2, layer.eps, layer.affine, tail=(nn.ReLU(),)),
    )
    model = nn.Sequential(nn.Conv2d(3, 4, 1), trained(_BatchNormAct(4))).eval()
    x = torch.randn(2, 3, 4, 4)
    expected = model(x)

    converted, _ = norm.convert(model, "sync_batch")
    torch.testing.assert_close(converted(x), expected)
    twice, replaced = norm.convert(converted, "frozen_batch")

    assert len(replaced) == 1
    torch.testing.assert_close(twice(x), expected)
    assert type(norm.revert(twice)[1]) is _BatchNormAct
    assert torch.equal(twice(x), expected)


def _readers() -> dict[type, Any]:
    from syncnorm.norm.reading import readers as sources

    return sources._READERS


def test_option_that_the_kind_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sync_batch has no option 'num_groups'; it has: none"):
        norm.convert(vgg(), "sync_batch", num_groups=4)


def test_groups_that_do_not_divide_are_refused_with_the_path() -> None:
    with pytest.raises(ValueError, match=r"^1 can't become group: num_groups must divide the channels: 3 does not"):
        norm.convert(vgg(), "group", num_groups=3)


def test_layer_norm_stays() -> None:
    model, replaced = norm.convert(MODELS["lstm"][0](), "sync_batch")

    assert isinstance(model.norm, nn.LayerNorm)
    assert [item.path for item in replaced] == ["bn", "head.1"]
