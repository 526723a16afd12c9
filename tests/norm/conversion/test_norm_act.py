"""Layers with dropout and an activation inside, such as timm's."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from syncnorm import norm
from syncnorm.norm import KINDS
from syncnorm.norm.reading.norm_act import with_tail
from tests.helpers.norm.models import trained
from tests.helpers.norm.norm_act import LAYERS, BatchNormAct2d, FrozenBatchNormAct2d, GroupNormAct

RUNNING_KINDS = [name for name, kind in KINDS.items() if kind.running_statistics]
Layer = type[BatchNormAct2d] | type[GroupNormAct] | type[FrozenBatchNormAct2d]
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "SiLU": nn.SiLU,
    "ReLU in place": lambda: nn.ReLU(inplace=True),
    "PReLU": lambda: nn.PReLU(8),
    "none": nn.Identity,
}
# Kinds that keep every tensor of a layer and bring no other.
SAME_KEYS = ("batch", "sync_batch", "ghost_batch", "noisy_batch", "batch_renorm", "sync_batch_renorm")


def _model(layer: Layer, act: nn.Module, drop: nn.Module | None = None) -> nn.Sequential:
    return trained(nn.Sequential(nn.Conv2d(3, 8, 3), layer(8, act, drop), nn.Conv2d(8, 8, 1), layer(8))).eval()


@pytest.fixture(params=ACTIVATIONS)
def act(request: pytest.FixtureRequest) -> nn.Module:
    return ACTIVATIONS[request.param]()


@pytest.mark.parametrize("kind", SAME_KEYS)
def test_state_dict_keeps_its_keys_and_the_model_its_function(kind: str, act: nn.Module) -> None:
    model, x = _model(BatchNormAct2d, act), torch.randn(2, 3, 8, 8)
    expected, state = model(x), copy.deepcopy(model.state_dict())
    fresh = _model(BatchNormAct2d, copy.deepcopy(act))

    converted, _ = norm.convert(model, kind)

    assert converted.state_dict().keys() == state.keys()
    assert dict(converted.named_parameters()).keys() == dict(fresh.named_parameters()).keys()
    torch.testing.assert_close(converted(x), expected)
    converted.load_state_dict(fresh.state_dict())
    torch.testing.assert_close(converted(x), fresh(x))
    converted.load_state_dict(state)
    fresh.load_state_dict(converted.state_dict())
    torch.testing.assert_close(fresh(x), expected)


@pytest.mark.parametrize("kind", ["group", "layer"])
def test_group_norm_keeps_its_keys(kind: str, act: nn.Module) -> None:
    model, x = _model(GroupNormAct, act), torch.randn(2, 3, 8, 8)
    expected, keys = model(x), model.state_dict().keys()

    converted, replaced = norm.convert(model, kind, **({"num_groups": 4} if kind == "group" else {}))

    assert converted.state_dict().keys() == keys
    assert [item.after for item in replaced] == ["GroupNormAct"] * 2
    if kind == "group":
        torch.testing.assert_close(converted(x), expected)


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"fixup"}))  # which needs residual blocks
@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.__name__)
def test_every_kind_trains_and_reverts_exactly(layer: Layer, kind: str) -> None:
    model, x = _model(layer, nn.ReLU(inplace=True), nn.Dropout(0.1)), torch.randn(4, 3, 8, 8)
    expected, state = model(x), copy.deepcopy(model.state_dict())

    converted, _ = norm.convert(model, kind)
    converted.train()(x).square().sum().backward()
    reverted = norm.revert(converted.eval())
    reverted.load_state_dict(state)

    assert [type(module) for module in reverted.modules()] == [type(module) for module in model.modules()]
    assert reverted.state_dict().keys() == state.keys()
    assert torch.equal(reverted(x), expected)


@pytest.mark.parametrize("kind", ["evo_s0", "filter_response"])
def test_kinds_that_are_the_activation_replace_the_layers_own(kind: str) -> None:
    model, replaced = norm.convert(_model(BatchNormAct2d, nn.SiLU(), nn.Dropout(0.1)), kind)

    assert [model[1].activation, model[3].activation] == [True, False]
    assert [type(part) for part in model[1].tail.values()] == [nn.Dropout, nn.Identity]
    assert f"{kind} is the activation, and its own SiLU goes" in replaced[0].note
    codes = {found.code for found in norm.audit(model, torch.randn(2, 3, 8, 8), batch_size=2, workers=2)}
    assert codes <= {"normalizes_nothing"}


class GroupNormActivation(nn.GroupNorm):
    """Its part has the name that an attribute of EvoNormS0 and FilterResponseNorm has, as in Hugging Face's Bit."""

    def __init__(self, num_channels: int) -> None:
        super().__init__(4, num_channels)
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.activation(super().forward(x))
        return y


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"fixup"}))
def test_part_may_be_called_like_an_attribute_of_the_new_layer(kind: str) -> None:
    def read(layer: GroupNormActivation) -> norm.Source:
        return norm.Source("group", layer.num_channels, 2, layer.eps, affine=True, tail=(layer.activation,))

    norm.register_source(GroupNormActivation, read)
    model, x = nn.Sequential(nn.Conv2d(3, 8, 3), GroupNormActivation(8)), torch.randn(4, 3, 8, 8)
    expected = model(x)

    converted, replaced = norm.convert(model, kind)
    converted(x).sum().backward()

    assert "1" in [item.path for item in replaced]
    assert torch.equal(norm.revert(converted)(x), expected)


def test_layers_without_an_own_activation_take_the_one_behind() -> None:
    model, _ = norm.convert(nn.Sequential(nn.Conv2d(3, 8, 3), BatchNormAct2d(8), nn.ReLU()), "evo_s0")

    assert model[1].activation
    assert type(model[2]) is nn.Identity


def test_selu_replaces_the_layers_own_activation() -> None:
    model, x = _model(BatchNormAct2d, nn.SiLU(), nn.Dropout(0.1)), torch.randn(2, 3, 8, 8)

    converted, _ = norm.convert(model, "selu")

    kinds = [type(module).__name__ for module in converted.modules() if next(module.children(), None) is None]
    assert kinds == ["Conv2d", "AlphaDropout", "SELU", "Conv2d", "Identity", "Identity"]
    between = nn.functional.selu(converted[0](x))
    torch.testing.assert_close(converted(x), converted[2](between))


@pytest.mark.parametrize("kind", ["none", "weight", "selu"])
def test_removed_layer_does_not_write_into_its_input(kind: str) -> None:
    class PreActivation(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), BatchNormAct2d(3, nn.ReLU(inplace=True))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.conv(self.norm(x))

    x = torch.randn(2, 3, 4, 4)
    before = x.clone()

    norm.convert(PreActivation(), kind)[0](x)

    assert torch.equal(x, before)


def test_names_of_layers_in_a_row_with_their_activation_load() -> None:
    state = _model(BatchNormAct2d, nn.PReLU(8)).state_dict()
    renamed = {
        key.replace("1.act.", "1.2.") if "act" in key else key.replace("1.", "1.0.", 1).replace("3.", "3.0.", 1): value
        for key, value in state.items()
        if key.startswith(("1", "3"))
    } | {key: value for key, value in state.items() if key.startswith(("0", "2"))}
    assert {"1.0.running_mean", "1.2.weight", "3.0.bias"} < renamed.keys()
    model, _ = norm.convert(_model(BatchNormAct2d, nn.PReLU(8)), "sync_batch")

    assert model.load_state_dict(renamed).missing_keys == []

    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def _pickled(model: nn.Module) -> nn.Module:
    torch.save(model, file := io.BytesIO())
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert isinstance(loaded, nn.Module)
    return loaded


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "double": lambda model: copy.deepcopy(model).double().float(),
    "compile": lambda model: torch.compile(model, backend="eager"),
    "export": lambda model: torch.export.export(model, (torch.randn(2, 3, 8, 8),)).module(),
}


@pytest.mark.parametrize("name", COPIES)
def test_copies_compute_the_same(name: str) -> None:
    model, x = _model(BatchNormAct2d, nn.PReLU(8)), torch.randn(2, 3, 8, 8)
    converted, _ = norm.convert(model, "sync_batch")

    torch.testing.assert_close(COPIES[name](converted)(x), converted(x))


def test_pickled_layer_computes_the_same() -> None:
    layer, x = with_tail(norm.SyncBatchNorm(8), {"act": nn.PReLU(8)}), torch.randn(2, 8, 3, 3)

    loaded = _pickled(layer)

    assert type(loaded) is type(layer)
    assert torch.equal(loaded(x), layer(x))


def test_deep_copy_reverts() -> None:
    model, x = _model(BatchNormAct2d, nn.PReLU(8)), torch.randn(2, 3, 8, 8)
    expected = model(x)

    reverted = norm.revert(copy.deepcopy(norm.convert(model, "sync_batch")[0]))

    assert type(reverted[1]) is BatchNormAct2d
    assert torch.equal(reverted(x), expected)


def test_weights_for_the_original_classes_have_their_names() -> None:
    plain, x = _model(BatchNormAct2d, nn.PReLU(8)), torch.randn(2, 3, 8, 8)
    model, _ = norm.convert(copy.deepcopy(plain), "sync_batch")
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.1)

    plain.load_state_dict(norm.plain_state_dict(model))

    torch.testing.assert_close(plain(x), model(x))


def test_layer_with_a_parametrization_has_one_behind_it_too() -> None:
    layer = with_tail(nn.BatchNorm2d(8), {"act": nn.ReLU()})
    nn.utils.parametrize.register_parametrization(layer, "weight", nn.Softplus())

    double = copy.deepcopy(layer)

    x = torch.randn(2, 8, 3, 3)
    assert torch.equal(double(x), layer(x))
    with pytest.raises(RuntimeError, match="only supported through state_dict"):
        _pickled(layer)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_scripting_is_refused_with_a_way_out_that_works() -> None:
    model, x = _model(BatchNormAct2d, nn.SiLU()), torch.randn(2, 3, 8, 8)
    model, _ = norm.convert(model, "batch")

    with pytest.raises(NotImplementedError, match=r"can't compile BatchNorm2dAct. For inference, script norm\.fold"):
        torch.jit.script(model)

    torch.testing.assert_close(torch.jit.script(norm.fold(model)[0])(x), model(x))


@pytest.mark.parametrize("kind", ["none", "weight", "selu"])
def test_folded_network_without_normalization_consists_of_layers_of_torch(kind: str) -> None:
    model, x = norm.convert(_model(BatchNormAct2d, nn.SiLU()), kind)[0].eval(), torch.randn(2, 3, 8, 8)

    folded, _ = norm.fold(model)

    assert all(type(module).__module__.startswith("torch.nn") for module in folded.modules())
    torch.testing.assert_close(folded(x), model(x))


def test_places_have_the_names_of_earlier_versions_too() -> None:
    model, _ = norm.convert(_model(BatchNormAct2d, nn.PReLU(8)), "sync_batch")

    places = norm.tensor_places(model)

    for earlier, now in {
        "1.0.weight": "1.weight",
        "1.0.running_var": "1.running_var",
        "1.2.weight": "1.act.weight",
    }.items():
        assert places.by_name[earlier].tensor is places.by_name[now].tensor
        assert places.by_name[earlier].fills == (now,)
    assert places.own.keys() == model.state_dict().keys()
