"""Each diagnostic against a direct computation of its formula, on a small network in fp64."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from syncnorm.trainer.data.loader import Batch
from syncnorm.trainer.diagnostics import (
    activation_statistics,
    covariate_shift,
    equivalence,
    gradient_histograms,
    landscape,
)
from syncnorm.trainer.diagnostics.callback import finite, measured_steps
from syncnorm.trainer.diagnostics.observed_layers import weights_of_layers
from syncnorm.trainer.diagnostics.probe import Evaluation, Probe
from syncnorm.trainer.diagnostics.undisturbed import Snapshot
from syncnorm.trainer.random_state import random_state

TOLERANCE = {"rtol": 1e-10, "atol": 1e-12}  # fp64, sums in another order
LR = 0.3


class Case:
    """A network with dropout and batch norm, a batch, and one step of gradient descent of its probe."""

    def __init__(self, network: nn.Module | None = None) -> None:
        torch.manual_seed(0)
        self.x = torch.randn(16, 4, dtype=torch.float64)
        self.y = torch.randint(0, 3, (16,))
        self.network = network or nn.Sequential(
            nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.4), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)
        )
        self.network.double()
        self.before = copy.deepcopy(self.network)
        start = Snapshot.take(self.network)
        self.random = torch.get_rng_state()
        self.loss().backward()
        self.gradient = {name: p.grad.clone() for name, p in self.network.named_parameters() if p.grad is not None}
        torch.optim.SGD(self.network.parameters(), lr=LR).step()
        self.after = {name: p.detach().clone() for name, p in self.network.named_parameters()}
        self.probe = self.probe_from(start)

    def probe_from(self, start: Snapshot) -> Probe:
        batch, end = Batch((self.x, self.y), 1.0), Snapshot.take(self.network)
        given = self.gradient
        return Probe(self.network, batch, lambda *_: self.loss(), start=start, end=end, lr=LR, given_to_optimizer=given)

    def loss(self) -> Tensor:
        return F.cross_entropy(self.network(self.x), self.y)

    def gradient_at(self, changed: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and gradient at the weights before the step but for `changed`, without any of the code under test."""
        torch.set_rng_state(self.random)
        weights = {
            name: changed.get(name, p).detach().clone().requires_grad_() for name, p in self.before.named_parameters()
        }
        loss = F.cross_entropy(functional_call(copy.deepcopy(self.before), weights, (self.x,)), self.y)
        return loss.detach(), dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))


def test_gradient_histograms_are_those_of_backward() -> None:
    case = Case()

    layers = gradient_histograms.measure(case.probe)["layers"]

    assert list(layers) == ["0", "4", "6"]
    for path in layers:
        gradient = case.gradient[f"{path}.weight"].numpy()
        weight = case.before.get_parameter(f"{path}.weight").detach().numpy()
        for panel, values in {
            "gradient": gradient,
            "weight": weight,
            "weight_minus_gradient": weight - gradient,
        }.items():
            limit = np.abs(values).max()
            counts, _ = np.histogram(values, gradient_histograms.BINS, (-limit, limit))
            assert layers[path][panel]["counts"] == counts.tolist()
            assert layers[path][panel]["limit"] == pytest.approx(limit, rel=1e-10)
            assert layers[path][panel]["l2"] == pytest.approx(np.linalg.norm(values), rel=1e-10)


def test_gradient_below_is_that_of_the_layers_input() -> None:
    case = Case()

    layers = gradient_histograms.measure(case.probe)["layers"]

    # By hand for the last layer: dL/dx = (softmax - onehot) / N @ W.
    case.probe.start.restore(case.network)
    logits = case.network(case.x)
    dlogits = (logits.softmax(1) - F.one_hot(case.y, 3)) / 16
    expected = (dlogits @ case.before.get_parameter("6.weight")).detach().norm()
    assert layers["6"]["gradient_below"]["l2"] == pytest.approx(float(expected), rel=1e-10)
    assert sum(layers["6"]["gradient_below"]["counts"]) == 16 * 5
    assert "gradient_below" not in layers["0"]


def test_gradient_below_is_what_one_layer_alone_passes_down() -> None:
    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.left, self.right = nn.Linear(4, 4), nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            stem = self.stem(x)
            return self.left(stem) + 2 * self.right(stem)  # type: ignore[no-any-return]

    case = Case(Fork())

    below = case.probe.observation.below

    dlogits = (case.before(case.x).softmax(1) - F.one_hot(case.y, 3)) / 16
    left = (dlogits @ case.before.get_parameter("left.weight")).detach().flatten()
    right = (2 * dlogits @ case.before.get_parameter("right.weight")).detach().flatten()
    torch.testing.assert_close(below["left"], left, **TOLERANCE)
    torch.testing.assert_close(below["right"], right, **TOLERANCE)


def test_a_unit_that_is_never_active_has_gradients_of_exactly_zero() -> None:
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        network.get_parameter("0.bias")[:2] = -1e3
        network.get_parameter("0.bias")[2:] = 1e3
    case = Case(network)

    layers = gradient_histograms.measure(case.probe)["layers"]

    assert layers["0"]["nonzero_share"] == 6 / 8
    assert layers["2"]["nonzero_share"] == 6 / 8


def test_landscape_of_a_quadratic_is_its_closed_form() -> None:
    torch.manual_seed(0)
    root = torch.randn(5, 5, dtype=torch.float64)
    a, w = root @ root.T, torch.randn(5, dtype=torch.float64)

    def evaluate(weights: Mapping[str, Tensor]) -> Evaluation:
        at = weights["w"]
        return Evaluation(float(at @ a @ at / 2), {"w": a @ at})

    found = landscape.along(evaluate, {"w": w}, evaluate({"w": w}), LR)

    g = a @ w
    for rate, loss, change in zip(found["rates"], found["losses"], found["gradient_changes"], strict=True):
        step = rate * LR
        assert loss == pytest.approx(float(w @ a @ w / 2 - step * g @ g + step**2 / 2 * g @ a @ g), rel=1e-10)
        assert change == pytest.approx(float(step * (a @ g).norm()), rel=1e-10)
    assert found["beta"] == pytest.approx(float((a @ g).norm() / g.norm()), rel=1e-10)
    assert (found["rates"][0], found["rates"][-1]) == (0.5, pytest.approx(4))


def test_landscape_follows_the_gradient_with_the_dropout_of_the_step() -> None:
    case = Case()

    found = landscape.measure(case.probe)

    loss, gradient = case.gradient_at({})
    assert found["loss"] == pytest.approx(float(loss), rel=1e-10)
    change = []
    for rate, measured in zip(found["rates"], found["losses"], strict=True):
        moved = {name: p.detach() - rate * LR * gradient[name] for name, p in case.before.named_parameters()}
        there, gradient_there = case.gradient_at(moved)
        change.append(math.sqrt(sum(float((gradient_there[n] - gradient[n]).square().sum()) for n in gradient)))
        assert measured == pytest.approx(float(there), rel=1e-10)
    assert found["gradient_changes"] == pytest.approx(change, rel=1e-8)
    norm = math.sqrt(sum(float(g.square().sum()) for g in gradient.values()))
    largest = max(c / (rate * LR * norm) for c, rate in zip(change, found["rates"], strict=True))
    assert found["beta"] == pytest.approx(largest, rel=1e-8)


def test_covariate_shift_is_definition_2_1() -> None:
    case = Case()
    # The parameters of the layers before each layer, written out.
    before = {
        "4": ["0.weight", "0.bias", "1.weight", "1.bias"],
        "6": ["0.weight", "0.bias", "1.weight", "1.bias", "4.weight", "4.bias"],
    }

    layers = covariate_shift.measure(case.probe)["layers"]

    _, gradient = case.gradient_at({})
    for path, names in before.items():
        _, shifted = case.gradient_at({name: case.after[name] for name in names})
        g, other = gradient[f"{path}.weight"].flatten(), shifted[f"{path}.weight"].flatten()
        assert layers[path]["shift_l2"] == pytest.approx(float((g - other).norm()), rel=1e-8)
        assert layers[path]["shift_l2"] > 1e-3
        assert layers[path]["shift_cosine"] == pytest.approx(float(F.cosine_similarity(g, other, dim=0)), rel=1e-8)
    assert (layers["0"]["shift_l2"], layers["0"]["shift_cosine"]) == (0.0, pytest.approx(1.0))


def test_activation_statistics_are_those_of_the_outputs() -> None:
    network = nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    with torch.no_grad():
        network.get_parameter("0.bias")[0] = -1e3
        network.get_parameter("2.weight").mul_(8)
    case = Case(network)

    layers = activation_statistics.measure(case.probe)["layers"]

    first = F.linear(case.x, *case.before[0].parameters()).detach()  # type: ignore[index]
    second = F.linear(first.relu(), *case.before[2].parameters()).detach()  # type: ignore[index]
    assert layers["0"]["channel_mean"] == pytest.approx(first.mean(0).tolist(), rel=1e-10)
    assert layers["1"]["channel_std"] == pytest.approx(first.relu().std(0, correction=0).tolist(), rel=1e-10)
    assert layers["3"]["mean"] == pytest.approx(float(second.tanh().mean()), rel=1e-10)
    assert layers["3"]["std"] == pytest.approx(float(second.tanh().std(correction=0)), rel=1e-10)
    assert layers["1"]["saturated_share"] == pytest.approx(float((first <= 0).double().mean()))
    assert layers["1"]["dead_channels"] == 1 / 6
    # tanh' = 1 - tanh^2 < 0.01
    flat = float((second.abs() > math.atanh(math.sqrt(0.99))).double().mean())
    assert layers["3"]["saturated_share"] == pytest.approx(flat)
    assert 0 < flat < 1
    assert "dead_channels" not in layers["0"]


def test_a_module_called_twice_counts_as_one_over_both_calls() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.out, self.act = nn.Linear(4, 4), nn.Linear(4, 3), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.out(self.act(self.fc(self.act(self.fc(x))))))  # type: ignore[no-any-return]

    case = Case(Twice())

    layers = activation_statistics.measure(case.probe)["layers"]

    fc = case.before.get_submodule("fc")
    first = fc(case.x).detach()
    both = torch.cat([first, fc(first.relu()).detach()])
    assert layers["fc"]["channel_mean"] == pytest.approx(both.mean(0).tolist(), rel=1e-10)
    assert layers["fc"]["std"] == pytest.approx(float(both.std(correction=0)), rel=1e-10)
    assert layers["act"]["saturated_share"] == pytest.approx(float((both <= 0).double().mean()))
    assert len(layers["act.3"]["channel_mean"]) == 3  # the same module on another number of channels


MEASURES: list[Callable[[Probe], dict[str, Any]]] = [
    gradient_histograms.measure,
    landscape.measure,
    covariate_shift.measure,
    equivalence.measure,
    activation_statistics.measure,
]


@pytest.mark.parametrize("measure", MEASURES)
def test_afterwards_everything_is_as_it_was(measure: Callable[[Probe], dict[str, Any]]) -> None:
    class Counting(nn.Sequential):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(x)  # type: ignore[no-any-return]

    case = Case(Counting(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3)))
    torch.rand(7)
    probe = case.probe_from(case.probe.start)
    state = {name: tensor.clone() for name, tensor in case.network.state_dict().items()}
    generators, hooks = random_state()["torch"], [len(m._forward_hooks) for m in case.network.modules()]

    with probe.undisturbed():
        measure(probe)

    assert [name for name, tensor in case.network.state_dict().items() if not torch.equal(tensor, state[name])] == []
    assert torch.equal(random_state()["torch"], generators)
    assert case.network.calls == 1  # type: ignore[comparison-overlap]
    assert [len(m._forward_hooks) for m in case.network.modules()] == hooks
    assert all(torch.equal(p.grad, case.gradient[n]) for n, p in case.network.named_parameters() if p.grad is not None)


def test_a_failure_while_measuring_restores_too() -> None:
    case = Case()
    state = {name: tensor.clone() for name, tensor in case.network.state_dict().items()}

    with pytest.raises(RuntimeError, match="broke"), case.probe.undisturbed():
        case.probe.evaluate({"0.weight": torch.zeros(6, 4, dtype=torch.float64)})
        raise RuntimeError("broke")

    assert all(torch.equal(tensor, state[name]) for name, tensor in case.network.state_dict().items())


def test_a_compiled_network_is_measured_as_it_is_written_and_stays_compiled() -> None:
    class Written(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:  # torch 2.13 compiles nothing of a bare Sequential
            return super().forward(x)  # type: ignore[no-any-return]

    network = Written(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
    expected = activation_statistics.measure(Case(copy.deepcopy(network)).probe)
    case, compilations = Case(network), []

    def backend(graph: torch.fx.GraphModule, _example: object) -> Callable[..., Any]:
        compilations.append(graph)
        return graph.forward

    case.network.compile(backend=backend)
    case.network(case.x)
    compiled = len(compilations)
    probe = case.probe_from(case.probe.start)

    with probe.undisturbed():
        measured = activation_statistics.measure(probe)
    case.network(case.x)

    assert measured == expected
    assert len(compilations) == compiled > 0  # the last call took what was compiled before


def test_weights_are_matrices_and_kernels_not_biases_and_norms() -> None:
    network = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.GroupNorm(1, 2), nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    )
    network[0].weight.requires_grad_(False)

    layers = weights_of_layers(nn.Sequential(network, nn.LSTM(2, 2)))

    assert layers == {
        "0.2": ("0.2.parametrizations.weight.original1",),
        "1": ("1.weight_ih_l0", "1.weight_hh_l0"),
    }


@pytest.mark.parametrize(("steps", "expected"), [(1, {0}), (3, {0, 1, 2}), (101, {0, 25, 50, 75, 100})])
def test_measured_steps_are_spread_evenly(steps: int, expected: set[int]) -> None:
    assert measured_steps(steps, count=5) == expected


def test_numbers_that_json_lacks_become_none() -> None:
    assert finite({"a": [math.nan, 1.0, math.inf], "b": {"c": 2}}) == {"a": [None, 1.0, None], "b": {"c": 2}}


def test_one_worker_is_one_device() -> None:
    found = equivalence.measure(Case().probe)

    assert found["equal"]
    assert found["gradient_difference"] == found["statistics_difference"] == found["optimizer_difference"] == 0.0


def test_an_optimizer_that_was_given_something_else_is_noticed() -> None:
    case = Case()
    case.gradient["4.weight"] = case.gradient["4.weight"] * 1.01

    found = equivalence.measure(case.probe_from(case.probe.start))

    assert found["optimizer_difference"] == pytest.approx(0.01)
    assert not found["equal"]


def test_a_gradient_of_rounding_errors_is_judged_by_the_network() -> None:
    references = {"weight": torch.tensor([2.0, -1.0]), "bias before a norm": torch.tensor([1e-9])}
    tensors = {"weight": torch.tensor([2.0, -0.9]), "bias before a norm": torch.tensor([-3e-9])}

    found = equivalence.differences(tensors, references)

    assert found == pytest.approx({"weight": 0.05, "bias before a norm": 2e-8})


def test_a_gradient_that_is_not_finite_equals_nothing() -> None:
    case = Case()
    case.gradient["0.bias"] = case.gradient["0.bias"] * float("nan")

    assert not equivalence.measure(case.probe_from(case.probe.start))["equal"]


@pytest.mark.parametrize(
    ("greatest", "equal", "said"),
    [
        (
            2e-7,
            True,
            "2 steps computed again on one device with the whole batch: equal; gradients differ by at most 2.0e",
        ),
        (0.3, False, "NOT equal; gradients differ by at most 3.0e-01, allowed is 1e-03"),
        (None, False, "NOT equal; gradients differ by at most nan"),
    ],
)
def test_equivalence_is_told_in_a_sentence(greatest: float | None, equal: bool, said: str) -> None:
    first = {"gradient_difference": 1e-8, "tolerance": 1e-3, "equal": True}

    assert said in equivalence.sentence([first, first | {"gradient_difference": greatest, "equal": equal}])


STEP = {
    "loss_difference": 4e-7,
    "gradient_difference": 2e-6,
    "statistics_difference": 1e-7,
    "optimizer_difference": 0.0,
    "tolerance": 1e-3,
    "equal": True,
}
JUMPED = STEP | {"gradient_difference": 6.6e-3, "equal": False}


def test_a_relu_at_zero_is_no_mistake() -> None:
    """Measured in fp32: in one of twelve steps a unit was on the other side of 0."""
    told = equivalence.sentence([STEP] * 5 + [JUMPED] + [STEP] * 6)

    assert "whole batch: equal, but for the gradients of 1 step, as where a ReLU gets 0" in told
    assert "differ by at most 6.6e-03, allowed is 1e-03" in told


@pytest.mark.parametrize(
    "records",
    [
        [STEP] * 2 + [JUMPED],  # too often
        [STEP] * 11 + [JUMPED | {"gradient_difference": 0.1}],  # a lost sample
        [STEP] * 11 + [JUMPED | {"statistics_difference": 2e-3}],  # statistics and losses don't jump
        [STEP] * 11 + [JUMPED | {"loss_difference": 2e-3}],
        [STEP] * 11 + [JUMPED | {"loss_difference": None}],
        [STEP] * 11 + [JUMPED | {"gradient_difference": None}],
        [STEP | {"tolerance": 1e-9}] * 11 + [JUMPED | {"tolerance": 1e-9}],  # in fp64 no unit is that close to 0
    ],
)
def test_a_mistake_is_no_relu_at_zero(records: list[dict[str, float | None]]) -> None:
    assert "whole batch: NOT equal" in equivalence.sentence(records)
