"""Batch Renormalization, ghost, noisy and frozen batch normalization against their formulas."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from syncnorm import norm
from syncnorm.norm.layers.batch_renorm import BatchRenorm, RenormSchedule
from syncnorm.norm.layers.ghost_batch_norm import GhostBatchNorm
from tests.helpers.norm.models import ResNet, trained, vgg

STARTED = RenormSchedule(warmup_steps=0, r_max_steps=0, d_max_steps=0, r_max=3.0, d_max=5.0)
EPS = 1e-5


def _renorm(mean: float, std: float, step: int = 5, schedule: RenormSchedule = STARTED) -> BatchRenorm:
    layer = BatchRenorm(2, momentum=0.1, schedule=schedule, dtype=torch.float64)
    layer.running_mean.fill_(mean)
    layer.running_var.fill_(std**2 - EPS)
    layer.num_batches_tracked.fill_(step)
    return layer


def test_renorm_gives_what_eval_would_where_nothing_is_clipped() -> None:
    layer, x = _renorm(0.4, 1.5), torch.randn(6, 2, 3, dtype=torch.float64)
    before = nn.BatchNorm1d(2, dtype=torch.float64).eval()
    before.load_state_dict(layer.state_dict())

    torch.testing.assert_close(layer(x), before(x))


def test_renorm_clips_r_and_d() -> None:
    layer, x = _renorm(-100.0, 0.01), torch.randn(6, 2, 3, dtype=torch.float64)
    x_hat = nn.functional.batch_norm(x, None, None, training=True, eps=EPS)

    torch.testing.assert_close(layer(x), x_hat * 3 + 5)


def test_renorm_moves_the_mean_and_the_standard_deviation() -> None:
    layer, x = _renorm(1.0, 2.0), torch.randn(6, 2, 3, dtype=torch.float64)
    mean, std = x.mean((0, 2)), (x.var((0, 2), correction=0) + EPS).sqrt()

    layer(x)

    torch.testing.assert_close(layer.running_mean, 1 + 0.1 * (mean - 1))
    torch.testing.assert_close((layer.running_var + EPS).sqrt(), 2 + 0.1 * (std - 2))


def test_renorm_backward_treats_r_and_d_as_constants() -> None:
    layer, x = _renorm(0.4, 1.5), torch.randn(6, 2, 3, dtype=torch.float64, requires_grad=True)
    probe = torch.randn(6, 2, 3, dtype=torch.float64)
    r = (x.var((0, 2), correction=0) + EPS).sqrt().detach() / 1.5
    plain = torch.autograd.grad((nn.functional.batch_norm(x, None, None, training=True, eps=EPS) * probe).sum(), x)[0]

    (layer(x) * probe).sum().backward()

    torch.testing.assert_close(x.grad, plain * r.view(1, 2, 1))


@pytest.mark.parametrize(
    ("step", "r_max", "d_max"),
    [(0, 1, 0), (5000, 1, 0), (15000, 1 + 2 * 10 / 35, 2.5), (25000, 1 + 2 * 20 / 35, 5), (40000, 3, 5), (10**6, 3, 5)],
)
def test_default_schedule_is_the_papers(step: int, r_max: float, d_max: float) -> None:
    found = RenormSchedule().limits(torch.tensor(step))

    assert [limit.item() for limit in found] == pytest.approx([r_max, d_max])


def test_renorm_is_batch_normalization_during_the_warm_up() -> None:
    layer, x = _renorm(3.0, 9.0, step=0, schedule=RenormSchedule()), torch.randn(6, 2, 3, dtype=torch.float64)

    torch.testing.assert_close(layer(x), nn.functional.batch_norm(x, None, None, training=True, eps=EPS))


def test_step_counter_is_saved() -> None:
    layer = _renorm(0.0, 1.0, step=1234)

    assert layer.state_dict()["num_batches_tracked"] == 1234


def test_renorm_survives_a_non_finite_batch() -> None:
    layer = _renorm(0.5, 1.5)
    before = {key: value.clone() for key, value in layer.state_dict().items()}

    layer(torch.full((4, 2, 3), torch.inf, dtype=torch.float64))

    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())


def test_renorm_without_momentum_averages_all_batches() -> None:
    layer = BatchRenorm(2, momentum=None, dtype=torch.float64)
    batches = [torch.randn(6, 2, 3, dtype=torch.float64) for _ in range(4)]

    for batch in batches:
        layer(batch)

    torch.testing.assert_close(layer.running_mean, torch.stack([b.mean((0, 2)) for b in batches]).mean(0))


def _chunked(x: Tensor, sizes: list[int]) -> tuple[Tensor, nn.BatchNorm2d]:
    reference = nn.BatchNorm2d(x.shape[1])
    return torch.cat([reference(chunk) for chunk in x.split(sizes)]), reference


@pytest.mark.parametrize(("size", "chunks"), [(8, [4, 4]), (10, [4, 4, 2]), (9, [4, 4, 1]), (3, [3])])
def test_ghosts_are_batches_of_their_own(size: int, chunks: list[int]) -> None:
    layer, x = GhostBatchNorm(3, ghost_size=4), torch.randn(size, 3, 4, 4)
    expected, reference = _chunked(x, chunks)

    y = layer(x)

    torch.testing.assert_close(y, expected)
    for key, value in reference.state_dict().items():
        torch.testing.assert_close(layer.state_dict()[key], value)


def test_last_ghost_with_one_value_joins_the_one_before() -> None:
    layer, x = GhostBatchNorm(3, ghost_size=4), torch.randn(9, 3, 1, 1)
    expected, _ = _chunked(x, [4, 5])

    torch.testing.assert_close(layer(x), expected)


def test_noise_has_the_ranges_of_the_paper_and_is_drawn_anew() -> None:
    layer = norm.build("noisy_batch", 2000, affine=False, dims=1)
    x = torch.tensor([[-1.0], [1.0]]).expand(2, 2000)  # normalized to -1 and 1, up to eps

    first, second = layer(x), layer(x)

    low, high = first
    # y = x * s + m: with s = s_j (1 +- .1) and m = m_j +- .1 the extremes are 1.25 * 1.1 + .6
    assert -1.975 <= low.min() < -1.7
    assert 1.7 < high.max() <= 1.975
    assert ((high - low) / 2).min() >= 0.9 - 0.1
    assert not torch.equal(first, second)
    assert ((high + low) / 2).mean().abs() < 0.05


def test_frozen_layer_neither_updates_nor_learns() -> None:
    model, _ = norm.convert(trained(vgg()), "frozen_batch")
    before = {key: value.clone() for key, value in model[1].state_dict().items()}

    model.train()(torch.randn(4, 3, 8, 8)).sum().backward()

    assert list(model[1].parameters()) == []
    assert all(torch.equal(value, before[key]) for key, value in model[1].state_dict().items())


@pytest.mark.parametrize("kind", ["batch_renorm", "sync_batch_renorm", "ghost_batch", "noisy_batch"])
def test_population_statistics_are_those_of_plain_batch_normalization(kind: str) -> None:
    plain, x = trained(ResNet()), torch.randn(8, 3, 8, 8)
    model, _ = norm.convert(trained(ResNet()), kind, **({"ghost_size": 8} if kind == "ghost_batch" else {}))
    model.load_state_dict(plain.state_dict())

    norm.recompute_population_statistics(plain, [x])
    norm.recompute_population_statistics(model, [x])

    for key, value in plain.state_dict().items():
        # fp32 rounding through ten layers
        torch.testing.assert_close(model.state_dict()[key], value, rtol=1e-4, atol=1e-4)
    layer = model.bn1
    assert getattr(layer, "schedule", RenormSchedule()) == RenormSchedule()
    assert getattr(layer, "is_noisy", True)


def test_frozen_layers_keep_their_statistics_when_population_is_recomputed() -> None:
    model, _ = norm.convert(trained(vgg()), "batch", overrides=[{"match": "1", "kind": "frozen_batch"}])
    before = model[1].running_mean.clone()

    found = norm.recompute_population_statistics(model, [torch.randn(8, 3, 8, 8)])

    assert torch.equal(model[1].running_mean, before)
    assert set(found.layers) == {"5", "11"}
