"""Activations next to a normalization, of any class, for the kinds that are the activation too."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from syncnorm import norm
from syncnorm.norm.layers.evo_norm import EvoNormS0
from syncnorm.norm.reading.elementwise import ACTIVATIONS, effect

ACTIVATING = ("evo_s0", "filter_response")


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


class LearnedSwish(nn.Module):
    """One exponent a channel."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.ones(num_features))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.beta.view(-1, *[1] * (x.dim() - 2)) * x)


class NamedReLU(nn.ReLU):
    """A subclass, as libraries have them."""


class DropPath(nn.Module):
    """Drops whole samples in training."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * torch.empty(x.shape[0], *[1] * (x.dim() - 1)).bernoulli_(0.5)


class Scale(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x + 1


class OwnSoftmax(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.exp() / x.exp().sum(1, keepdim=True)


class Centered(nn.Module):
    """Subtracts the mean of the batch in training, and nothing in evaluation."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x - x.mean(0) if self.training else x)


class ChannelAttention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.mean((2, 3), keepdim=True).sigmoid()


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return torch.relu(x)


class Bent(nn.Module):
    """Keeps a constant in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("slope", torch.tensor(0.2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, x, self.slope * x)


class OwnGate(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x)


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise OSError(f"no way to read {x.shape}")


REMOVED: dict[str, Callable[[], nn.Module]] = {
    **{kind.__name__: kind for kind in ACTIVATIONS if kind is not nn.Threshold},
    "Threshold": lambda: nn.Threshold(0.1, 0.0),
    "in place": lambda: nn.ReLU(inplace=True),
    "subclass": NamedReLU,
    "own": Swish,
    "own, with a constant": Bent,
    "own, with a parameter": lambda: LearnedSwish(8),
}


@pytest.mark.parametrize("kind", ACTIVATING)
@pytest.mark.parametrize("name", REMOVED)
def test_activation_of_any_class_goes(name: str, kind: str) -> None:
    model, replaced = norm.convert(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), REMOVED[name]()), kind)

    assert model[1].activation is True
    assert type(model[2]) is nn.Identity
    assert [item.note for item in replaced] == ["", f"{kind} is the activation"]


BETWEEN: dict[str, Callable[[], nn.Module]] = {
    "Identity": nn.Identity,
    "Dropout": lambda: nn.Dropout(0.1),
    "Dropout2d": lambda: nn.Dropout2d(0.1),
    "AlphaDropout": lambda: nn.AlphaDropout(0.1),
    "DropPath": DropPath,
}


@pytest.mark.parametrize("wrap", [lambda *parts: parts, lambda *parts: [nn.Sequential(*parts)]], ids=["flat", "nested"])
@pytest.mark.parametrize("kind", ACTIVATING)
@pytest.mark.parametrize("name", BETWEEN)
def test_activation_is_found_through_dropout(name: str, kind: str, wrap: Callable[..., list[nn.Module]]) -> None:
    parts = wrap(nn.BatchNorm2d(8), BETWEEN[name](), nn.PReLU())

    model, _ = norm.convert(nn.Sequential(nn.Conv2d(3, 8, 3), *parts), kind)

    layers = [module for module in model.modules() if getattr(module, "activation", None) is not None]
    assert [layer.activation for layer in layers] == [True]
    assert not any(isinstance(module, nn.PReLU) for module in model.modules())
    assert norm.audit(model, torch.randn(2, 3, 8, 8), batch_size=2, workers=2) == []


def test_activation_in_front_is_found_through_dropout() -> None:
    model, _ = norm.convert(
        nn.Sequential(nn.Conv2d(3, 8, 3), Swish(), nn.Dropout(), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)), "evo_s0"
    )

    assert model[3].activation
    assert type(model[1]) is nn.Identity


class FunctionalDropout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.act = nn.BatchNorm2d(3), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(F.dropout(self.norm(x), 0.1, self.training))


def test_activation_is_found_through_dropout_that_is_a_function() -> None:
    model, _ = norm.convert(FunctionalDropout(), "evo_s0")

    assert model.norm.activation
    assert type(model.act) is nn.Identity


FUNCTIONS = (F.hardtanh, F.softsign, F.rrelu, F.hardshrink, F.relu, torch.tanh)


class Calling(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.norm, self.function = nn.BatchNorm2d(3), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.norm(x))


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_activation_function_stays_and_is_reported(function: Callable[[Tensor], Tensor]) -> None:
    model, replaced = norm.convert(Calling(function), "evo_s0")

    assert model.norm.activation
    assert "is not a module, and stays" in replaced[0].note
    codes = [found.code for found in norm.audit(model, torch.randn(2, 3, 8, 8), batch_size=2, workers=2)]
    assert codes == ["activation_twice"]


GATES: dict[str, Callable[[], nn.Module]] = {
    "Sigmoid": nn.Sigmoid,
    "Hardsigmoid": nn.Hardsigmoid,
    "own": OwnGate,
    "function": lambda: Calling(torch.sigmoid).function,  # type: ignore[return-value,dict-item]
}


@pytest.mark.parametrize("kind", ACTIVATING)
@pytest.mark.parametrize("name", GATES)
def test_gate_stays_and_the_layer_normalizes(name: str, kind: str) -> None:
    gate = GATES[name]()
    model = nn.Sequential(nn.BatchNorm2d(8), gate) if isinstance(gate, nn.Module) else Calling(gate)

    converted, replaced = norm.convert(model, kind)

    layer = next(module for module in converted.modules() if hasattr(module, "activation"))
    assert layer.activation
    assert "the gate next to it, with outputs in [0, 1], stays" in replaced[0].note
    assert not isinstance(gate, nn.Module) or converted[1] is gate


NOT_ELEMENTWISE: dict[str, Callable[[], nn.Module]] = {
    "Softmax": lambda: nn.Softmax(1),
    "own softmax": OwnSoftmax,
    "channel attention": ChannelAttention,
    "statistics in training": Centered,
    "affine": Scale,
    "counts its calls": Counter,
    "broken": Broken,
    "convolution": lambda: nn.Conv2d(8, 8, 1),
    "pooling": lambda: nn.MaxPool2d(3, 1, 1),
}


@pytest.mark.parametrize("name", NOT_ELEMENTWISE)
def test_what_is_no_activation_stays_and_a_layer_without_one_is_reported(name: str) -> None:
    behind = NOT_ELEMENTWISE[name]()

    model, replaced = norm.convert(nn.Sequential(nn.BatchNorm2d(8), behind), "evo_s0")

    assert model[1] is behind
    assert not model[0].activation
    assert [item.note for item in replaced] == [
        "no activation is next to it, so it scales and shifts, and normalizes nothing"
    ]


def test_audit_counts_the_layers_that_normalize_nothing() -> None:
    model, _ = norm.convert(
        nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)),
        "evo_s0",
    )

    found = norm.audit(model, torch.randn(2, 3, 8, 8), batch_size=2, workers=2)

    assert [(item.code, item.path, item.severity) for item in found] == [("normalizes_nothing", "1", "warning")]
    assert found[0].message.startswith("2 of 2 evo_s0 layers normalize nothing")


def test_probing_a_module_leaves_it_and_the_random_numbers_alone() -> None:
    module = LearnedSwish(4)
    state, before = copy.deepcopy(module.state_dict()), torch.get_rng_state()

    assert effect(module) == "activation"

    assert module.training
    assert torch.equal(module.beta, state["beta"])
    assert torch.equal(torch.get_rng_state(), before)


def test_selu_exchanges_activations_of_any_class() -> None:
    model, _ = norm.convert(
        nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), Swish(), nn.Linear(8, 8), OwnGate()), "selu"
    )

    assert [type(module) for module in model] == [
        nn.Linear,
        nn.Identity,
        nn.AlphaDropout,
        nn.SELU,
        nn.Linear,
        OwnGate,
    ]


class PreActivation(nn.Module):
    """A residual block as MONAI's SegResNet has them."""

    def __init__(self, between: nn.Module | None = None) -> None:
        super().__init__()
        self.before, self.norm = nn.Identity(), nn.BatchNorm2d(3)
        self.between = nn.Identity() if between is None else between
        self.act, self.conv = nn.ReLU(inplace=True), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(self.act(self.between(self.norm(self.before(x)))))


class Branching(nn.Module):
    """Nothing of it can be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.act = nn.BatchNorm2d(3), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.act(self.norm(x)) if x.sum() < 1e9 else x


SHORTCUTS: dict[str, Callable[[], nn.Module]] = {
    "plain": PreActivation,
    "through dropout": lambda: PreActivation(nn.Dropout(0.1)),
    "through dropout in place": lambda: PreActivation(nn.Dropout(0.1, inplace=True)),
    "behind a layer": lambda: nn.Sequential(nn.Conv2d(3, 3, 1), PreActivation()),
    "untraced": Branching,
}


@pytest.mark.parametrize("kind", ["none", "weight", "selu"])
@pytest.mark.parametrize("name", SHORTCUTS)
def test_removed_normalization_does_not_let_an_activation_write_into_the_shortcut(name: str, kind: str) -> None:
    model, x = SHORTCUTS[name]().eval(), torch.randn(2, 3, 4, 4)
    before = x.clone()

    converted, _ = norm.convert(model, kind)
    y = converted(x)
    for module in converted.modules():
        if isinstance(getattr(module, "inplace", None), bool):
            module.inplace = False

    assert torch.equal(x, before)
    assert torch.equal(y, converted(x))
    assert all(module.inplace for module in norm.revert(converted).modules() if isinstance(module, nn.ReLU))


def test_activation_on_a_value_of_its_own_stays_in_place() -> None:
    model, replaced = norm.convert(nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(inplace=True)), "none")

    assert model[2].inplace
    assert [item.path for item in replaced] == ["1"]


@pytest.mark.parametrize("kind", ["sync_batch", "group", "evo_s0", "none"])
@pytest.mark.parametrize("layer", [lambda: EvoNormS0(8), lambda: norm.FilterResponseNorm(8)], ids=ACTIVATING)
def test_layer_that_is_an_activation_leaves_one_behind(layer: Callable[[], nn.Module], kind: str) -> None:
    original = layer()

    model, replaced = norm.convert(nn.Sequential(nn.Conv2d(3, 8, 1), original, nn.Conv2d(8, 8, 1)), kind)
    y = model[:2](torch.randn(2, 3, 5, 5) * 5)

    assert float(y.detach().min()) > -0.5  # the SiLU goes down to -0.28, only a linear map much further
    is_same = isinstance(original, EvoNormS0) and kind == "evo_s0"
    assert ("its own activation becomes" in replaced[0].note) is not is_same
    assert type(norm.revert(model)[1]) is type(original)


def test_evo_norm_keeps_its_learned_activation() -> None:
    layer, x = EvoNormS0(8), torch.randn(2, 8, 4, 4)
    with torch.no_grad():
        layer.v.uniform_(0.5, 2)  # type: ignore[union-attr]
    expected = layer(x)

    converted, _ = norm.convert(nn.Sequential(layer), "evo_s0")

    assert torch.equal(converted(x), expected)


PRODUCTS: dict[str, Callable[[Tensor], Tensor]] = {
    "swish": lambda x: x * torch.sigmoid(x),
    "gate first": lambda x: x.sigmoid() * x,
    "mul": lambda x: torch.mul(x, torch.sigmoid(x)),
    "method": lambda x: x.mul(x.sigmoid()),
    "in place": lambda x: x.mul_(torch.sigmoid(x)),
    "quick gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "hard swish": lambda x: x * (F.relu6(x + 3) / 6),
    "mish": lambda x: x * torch.tanh(F.softplus(x)),
}
OTHERS: dict[str, Callable[[Tensor], Tensor]] = {
    "a sum": lambda x: x + torch.sigmoid(x),
    "channel attention": lambda x: x * x.mean((2, 3), keepdim=True).sigmoid(),
    "a square": lambda x: x * x,
    "a scale": lambda x: x * (2 * x + 1),
}


class WrittenOut(nn.Module):
    def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.bn, self.last = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)
        self._activation = activation

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self._activation(self.bn(self.conv(x))))
        return y


@pytest.mark.parametrize("name", PRODUCTS)
def test_value_times_its_own_gate_is_one_activation(name: str) -> None:
    model, replaced = norm.convert(WrittenOut(PRODUCTS[name]), "evo_s0")

    found = norm.audit(model, torch.randn(2, 3, 4, 4), batch_size=2, workers=1)

    assert "not a module, and stays" in replaced[0].note
    assert model.bn.activation
    assert [item.path for item in found if item.code == "activation_twice"] == ["bn"]
    with pytest.raises(ValueError, match="selu needs every activation to be a module"):
        norm.convert(WrittenOut(PRODUCTS[name]), "selu")


@pytest.mark.parametrize("call", [F.relu, torch.tanh, lambda y: y.relu()], ids=["relu", "tanh", "method"])
def test_selu_names_the_function_that_it_cannot_exchange(call: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(ValueError, match=r"the model calls (relu|tanh) as a function, at (relu|tanh)\. Use a module"):
        norm.convert(WrittenOut(call), "selu")


@pytest.mark.parametrize("name", OTHERS)
def test_other_products_and_sums_are_no_activation(name: str) -> None:
    model, _ = norm.convert(WrittenOut(OTHERS[name]), "evo_s0")

    assert not model.bn.activation
    norm.convert(model, "selu")
