from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from syncnorm import norm
from tests.helpers.norm.models import ResNet, trained
from tests.helpers.norm.pool import Pool

# Rounding of float64 sums in another order, stored in float32 buffers.
FP32 = {"rtol": 1e-5, "atol": 1e-6}
UNEVEN = [torch.full((2, 1), 0.0), torch.full((8, 1), 10.0)]


def _net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.5), nn.Linear(4, 2))


def test_pooled_counts_every_value_once() -> None:
    layer = nn.BatchNorm1d(1)

    found = norm.recompute_population_statistics(layer, UNEVEN)

    assert layer.running_mean.item() == pytest.approx(8.0)
    assert layer.running_var.item() == pytest.approx(160 / 9)
    assert (found.num_batches, found.num_samples) == (2, 10)


def test_paper_counts_every_batch_once() -> None:
    layer = nn.BatchNorm1d(1)

    norm.recompute_population_statistics(layer, UNEVEN, estimator="paper")

    assert layer.running_mean.item() == pytest.approx(5.0)
    assert layer.running_var.item() == 0.0


def test_paper_takes_the_bessel_corrected_variance_of_each_batch() -> None:
    layer, batches = nn.BatchNorm1d(4), [torch.randn(5, 4) for _ in range(3)]

    norm.recompute_population_statistics(layer, batches, estimator="paper")

    torch.testing.assert_close(layer.running_mean, torch.stack([b.mean(0) for b in batches]).mean(0), **FP32)
    torch.testing.assert_close(layer.running_var, torch.stack([b.var(0) for b in batches]).mean(0), **FP32)


def test_pooled_equals_one_pass_over_all_data_at_the_input_of_each_layer() -> None:
    model, batches = _net(), [torch.randn(n, 3) for n in (4, 9, 2)]
    data = torch.cat(batches)

    found = norm.recompute_population_statistics(model, batches)

    hidden = model[0](data).double()
    torch.testing.assert_close(model[1].running_mean, hidden.mean(0).float(), **FP32)
    torch.testing.assert_close(model[1].running_var, hidden.var(0).float(), **FP32)
    torch.testing.assert_close(found.layers["1"].mean, hidden.mean(0), **FP32)


def test_layers_behind_see_batch_statistics_not_running_ones() -> None:
    model = nn.Sequential(trained(nn.BatchNorm1d(2)), nn.BatchNorm1d(2))

    norm.recompute_population_statistics(model, [torch.randn(50, 2) * 3 + 1])

    torch.testing.assert_close(model[1].running_mean, torch.zeros(2) + model[0].bias, **FP32)


def test_dropout_is_off() -> None:
    model, x = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(2)).train(), torch.randn(50, 2)

    norm.recompute_population_statistics(model, [x])

    torch.testing.assert_close(model[1].running_mean, x.mean(0), **FP32)
    torch.testing.assert_close(model[1].running_var, x.var(0), **FP32)


def test_drift_tells_how_far_the_running_mean_was() -> None:
    layer = nn.BatchNorm1d(1)
    layer.running_mean.fill_(4.0)
    layer.running_var.fill_(4.0)

    found = norm.recompute_population_statistics(layer, UNEVEN)

    assert found.layers[""].drift == pytest.approx((8 - 4) / 2, rel=1e-4)


def test_everything_else_is_as_before() -> None:
    model = trained(_net()).train()
    model[3].eval()
    model[1].momentum = None
    weights = {name: value.clone() for name, value in model.named_parameters()}

    norm.recompute_population_statistics(model, [torch.randn(6, 3)])

    assert [module.training for module in model] == [True, True, True, False, True]
    assert model[1].momentum is None
    assert model[1].num_batches_tracked == 7
    assert all(torch.equal(value, weights[name]) for name, value in model.named_parameters())
    assert all(value.grad is None for value in model.parameters())


def test_failure_restores_modes_momenta_and_statistics() -> None:
    model = trained(_net()).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}

    with pytest.raises(RuntimeError):
        norm.recompute_population_statistics(
            model, [torch.randn(6, 3), torch.full((6, 3), torch.nan), torch.randn(6, 5)]
        )

    assert all(module.training for module in model)
    assert model[1].momentum == 0.1
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not model[1]._forward_pre_hooks


def test_no_batches_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one batch, got none"):
        norm.recompute_population_statistics(_net(), [])


def test_unknown_estimator_is_refused() -> None:
    with pytest.raises(ValueError, match='estimator must be "pooled" or "paper"'):
        norm.recompute_population_statistics(_net(), [], estimator="mean")


def test_batches_may_be_tuples_or_mappings() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm1d(3)

        def forward(self, image: Tensor) -> Tensor:
            return self.bn(image)

    x = torch.randn(6, 3)
    model = Net()

    for batch in ((x, torch.zeros(6)), {"image": x}):
        found = norm.recompute_population_statistics(model, [batch])
        assert found.num_samples == 6
        torch.testing.assert_close(model.bn.running_mean, x.mean(0), **FP32)


def _on_rank(rank: int, world_size: int, model: nn.Module, batches: list[list[Tensor]], estimator: str) -> dict:
    model = copy.deepcopy(model)  # what comes through a pipe is memory shared with the other ranks
    found = norm.recompute_population_statistics(model, batches[rank], estimator=estimator)
    return {"state": model.state_dict(), "samples": found.num_samples, "batches": found.num_batches}


@pytest.mark.parametrize("kind", ["batch", "sync_batch"])
def test_pooled_over_uneven_workers_equals_one_worker_with_all_data(pool: Pool, kind: str) -> None:
    model, _ = norm.convert(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), kind)
    batches = [[torch.randn(n, 3, 5, 5) for n in sizes] for sizes in ((4, 3), (2,), (1, 5, 6))]
    expected = copy.deepcopy(model)
    norm.recompute_population_statistics(expected, [torch.cat([x for part in batches for x in part])])

    results = pool.run(_on_rank, 3, model, batches, "pooled")

    for result in results:
        assert result["samples"] == 21
        for key, value in expected.state_dict().items():
            torch.testing.assert_close(result["state"][key], value, **FP32)


def test_paper_on_a_synchronized_layer_takes_the_batches_of_the_group(pool: Pool) -> None:
    model = norm.SyncBatchNorm(2)
    steps = [torch.randn(6, 2), torch.randn(8, 2)]
    batches = [[step[: 2 + rank] if rank == 0 else step[2:] for step in steps] for rank in range(2)]

    results = pool.run(_on_rank, 2, model, batches, "paper")

    for result in results:
        var = torch.stack([step.var(0) for step in steps]).mean(0)
        torch.testing.assert_close(result["state"]["running_var"], var, **FP32)


def test_worker_without_batches_raises_the_same_error_everywhere(pool: Pool) -> None:
    outcomes = pool.outcomes(_on_rank, 2, norm.SyncBatchNorm(2), [[torch.randn(4, 2)], []], "pooled")

    assert all(not ok and "needs at least one batch: 1 of 2 have any" in str(error) for ok, error, _ in outcomes)


def test_whole_resnet_evaluates_as_it_trains_after_recomputing_on_one_batch() -> None:
    model, x = trained(ResNet()), torch.randn(64, 3, 8, 8)
    in_training = copy.deepcopy(model).train()(x)

    norm.recompute_population_statistics(model, [x])

    # n/(n-1) in the variance of the smallest layer (64·16 values) leaves 5e-4 relative a layer, over ten layers.
    torch.testing.assert_close(model.eval()(x), in_training, rtol=1e-2, atol=1e-2)


class _TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(2)

    def forward(self, x: Tensor, other: Tensor, scale: float = 1.0) -> Tensor:
        return self.bn(input=x + other) * scale


TWO: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "tuple": lambda x, other: (x, other),
    "list": lambda x, other: [x, other],
    "tuple with a target": lambda x, other: (x, other, torch.zeros(len(x))),
    "mapping": lambda x, other: {"x": x, "other": other},
    "mapping in another order": lambda x, other: {"other": other, "x": x},
}


@pytest.mark.parametrize("wrap", [lambda model: model, nn.DataParallel], ids=["plain", "wrapped"])
@pytest.mark.parametrize("name", TWO)
def test_model_of_two_inputs_gets_both(name: str, wrap: Callable[[nn.Module], nn.Module]) -> None:
    model, batches = _TwoInputs(), [(torch.randn(5, 2), torch.randn(5, 2)) for _ in range(3)]
    total = torch.cat([x + other for x, other in batches])

    found = norm.recompute_population_statistics(wrap(model), [TWO[name](*batch) for batch in batches])

    assert found.num_samples == 15
    torch.testing.assert_close(model.bn.running_mean, total.mean(0))
    torch.testing.assert_close(model.bn.running_var, total.var(0))


def test_target_of_a_pair_is_no_input() -> None:
    class Optional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm1d(2)

        def forward(self, x: Tensor, target: Tensor | None = None) -> Tensor:
            assert target is None
            return self.bn(x)

    found = norm.recompute_population_statistics(Optional(), [(torch.randn(5, 2), torch.zeros(5))])

    assert found.num_samples == 5
