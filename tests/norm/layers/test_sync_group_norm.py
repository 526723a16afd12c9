"""Volumes that are cut between workers: the statistics, and with them output and gradients, are those of the whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from syncnorm import norm
from tests.helpers.combinations import each_value
from tests.helpers.norm.pool import Pool
from tests.helpers.norm.splits import WAYS, counted, relative_error, way

C = 6
# Slices of each worker: alone, even, uneven, with workers that have none.
CUTS = [(7,), (4, 4), (3, 5), (8, 0), (2, 1, 5), (0, 3, 4)]
LAYERS: dict[str, tuple[Callable[..., nn.Module], Callable[..., nn.Module]]] = {
    "group": (lambda **to: norm.SyncGroupNorm(2, C, **to), lambda **to: nn.GroupNorm(2, C, **to)),
    "layer": (lambda **to: norm.SyncGroupNorm(1, C, **to), lambda **to: nn.GroupNorm(1, C, **to)),
    "instance": (lambda **to: norm.SyncInstanceNorm(C, **to), lambda **to: nn.GroupNorm(C, C, **to)),
    "batch": (lambda **to: norm.SyncBatchNorm(C, **to), lambda **to: nn.BatchNorm3d(C, **to)),
}


def piece(volume: Tensor, cut: Sequence[int], rank: int) -> Tensor:
    """The slices of one worker."""
    return torch.split(volume, list(cut), 2)[rank]


def step(network: nn.Module, x: Tensor, probe: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Output, gradient of x, and those of the parameters."""
    torch.manual_seed(1)
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, dtype=torch.float64).to(parameter.dtype)
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = network(x)
    (y * probe).sum().backward()
    return y.detach(), x.grad, {name: parameter.grad for name, parameter in network.named_parameters()}


def _on_rank(rank: int, size: int, kind: str, x: Tensor, probe: Tensor, cut: tuple[int, ...], how: Any) -> Any:
    with way(*how):
        return step(LAYERS[kind][0](dtype=x.dtype), piece(x, cut, rank), piece(probe, cut, rank))


def assert_whole(parts: list[Any], whole: Any, tolerance: float) -> None:
    for number in (0, 1):
        assert relative_error(torch.cat([part[number] for part in parts], 2), whole[number]) < tolerance
    for name, expected in whole[2].items():
        assert relative_error(sum(part[2][name] for part in parts), expected) < tolerance, name


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize(("cut", "how"), each_value(CUTS, WAYS))
def test_parts_of_a_volume_equal_the_whole(pool: Pool, kind: str, cut: tuple[int, ...], how: tuple[str, str]) -> None:
    x, probe = torch.randn(2, 2, C, sum(cut), 4, 5, dtype=torch.float64)
    x = x * 3 + torch.arange(sum(cut)).view(-1, 1, 1) + 2  # slices differ, so that a part's statistics would, too
    whole = step(LAYERS[kind][1](dtype=torch.float64), x, probe)

    parts = pool.run(_on_rank, len(cut), kind, x, probe, cut, how if len(cut) > 1 else ("fused", "gloo"))

    assert_whole(parts, whole, 1e-12)  # fp64 sums in another order


@pytest.mark.parametrize("kind", ["group", "instance"])
def test_channels_last_volumes_and_large_means(pool: Pool, kind: str) -> None:
    x, probe = torch.randn(2, 1, C, 8, 6, 5)
    x = (x + 1e3).to(memory_format=torch.channels_last_3d)
    whole = step(LAYERS[kind][1](dtype=torch.float64), x.double(), probe.double())

    parts = pool.run(_on_rank, 2, kind, x, probe, (3, 5), WAYS[0])

    assert_whole(parts, whole, 1e-5)  # fp32
    assert all(y.is_contiguous(memory_format=torch.channels_last_3d) for y, _, _ in parts)


def network(kind: str) -> nn.Sequential:
    """Convolutions of one position need no halo."""
    return nn.Sequential(nn.Conv3d(2, C, 1, bias=False), LAYERS[kind][0](), nn.LeakyReLU(), nn.Conv3d(C, 2, 1)).double()


def _train_on_rank(rank: int, size: int, kind: str, x: Tensor, probe: Tensor, cut: tuple[int, ...]) -> Any:
    return step(network(kind), piece(x, cut, rank), piece(probe, cut, rank))


@pytest.mark.parametrize("kind", LAYERS)
def test_a_network_over_a_cut_volume_has_the_gradients_of_the_whole(pool: Pool, kind: str) -> None:
    x, probe = torch.randn(2, 1, 2, 9, 4, 5, dtype=torch.float64)
    whole = step(network(kind), x, probe)

    assert_whole(pool.run(_train_on_rank, 3, kind, x, probe, (2, 3, 4)), whole, 1e-12)


def _exchanges(rank: int, size: int) -> list[int]:
    layer, x = norm.SyncGroupNorm(2, C), torch.randn(2, C, 3, 4, requires_grad=True)
    found: list[int] = []
    layer(x).sum().backward()  # sets the transport up
    for call in (layer, lambda x: checkpoint(layer, x, use_reentrant=False)):
        with counted() as number:
            y = call(x)
            found.append(number())
            y.square().sum().backward()
            found.append(number())
    return found


def test_one_exchange_each_way_also_under_activation_checkpointing(pool: Pool) -> None:
    for found in pool.run(_exchanges, 2):
        assert found == [1, 2, 1, 2]


def _second_derivative(rank: int, size: int, x: Tensor, cut: tuple[int, ...]) -> Tensor:
    part = piece(x, cut, rank).clone().requires_grad_()
    (dx,) = torch.autograd.grad(norm.SyncGroupNorm(2, C).double()(part).pow(3).sum(), part, create_graph=True)
    return torch.autograd.grad(dx.square().sum(), part)[0]


def test_second_derivatives_are_those_of_the_whole(pool: Pool) -> None:
    x = torch.randn(1, C, 6, 4, dtype=torch.float64)
    expected = _second_derivative(0, 1, x, (6,))

    found = torch.cat(pool.run(_second_derivative, 2, x, (2, 4)), 2)

    assert relative_error(found, expected) < 1e-10  # fp64


def _one_value(rank: int, size: int) -> str:
    try:
        norm.SyncInstanceNorm(2)(torch.randn(1, 2, 1 - rank))
    except ValueError as error:
        return str(error)
    return ""


def test_one_value_in_all_is_refused_on_every_worker(pool: Pool) -> None:
    for message in pool.run(_one_value, 2):
        assert "SyncInstanceNorm(2) needs more than one value per group of channels over all workers, got 1" in message


def _other_batch(rank: int, size: int) -> str:
    try:
        norm.SyncGroupNorm(2, C)(torch.randn(1 + rank, C, 4))
    except norm.ExchangeError as error:
        return str(error)
    return ""


def test_workers_with_other_samples_are_noticed(pool: Pool) -> None:
    assert all("rank 1 is in" in message for message in pool.run(_other_batch, 2))


def test_alone_it_is_the_layer_of_torch() -> None:
    ours, plain, x = norm.SyncGroupNorm(2, C), nn.GroupNorm(2, C), torch.randn(3, C, 5, 5)

    assert not dist.is_initialized()
    assert torch.equal(ours(x), plain(x))
    assert ours.state_dict().keys() == plain.state_dict().keys()


def test_other_channels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"SyncGroupNorm needs an input of shape \(N, 6, \*\), got \(2, 4, 3\)"):
        norm.SyncGroupNorm(2, C)(torch.randn(2, 4, 3))


def test_conversion_does_not_take_it_for_a_layer_of_whole_samples() -> None:
    with pytest.raises(ValueError, match="known behaviour can be converted: 0 is a SyncGroupNorm"):
        norm.convert(nn.Sequential(norm.SyncGroupNorm(2, C)), "group")
