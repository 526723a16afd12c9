from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from pool import Pool
from splits import SPLITS, part, relative_error
from torch import Tensor, nn

from norm import SyncBatchNorm

PLAIN = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def _step(layer: nn.Module, x: Tensor, probe: Tensor) -> dict[str, Tensor]:
    """One forward and backward: output, gradients, buffers."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = layer(x)
    (y * probe).sum().backward()
    found = {"y": y.detach(), "dx": x.grad}
    found |= {f"grad.{name}": parameter.grad for name, parameter in layer.named_parameters()}
    return found | {name: buffer.clone() for name, buffer in layer.state_dict().items() if "running" in name}


def _split_step(
    rank: int, world_size: int, state: dict[str, Tensor], x: Tensor, probe: Tensor, split: tuple[int, ...]
) -> dict[str, Tensor]:
    layer = SyncBatchNorm(x.shape[1], dtype=state["weight"].dtype)
    layer.load_state_dict(state)
    return _step(layer, part(x, split, rank), part(probe, split, rank))


def _trained(layer: nn.Module) -> nn.Module:
    for name, tensor in layer.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.5 if "var" in name else torch.randn_like(tensor))
    return layer


@pytest.mark.parametrize("split", SPLITS)
# fp64: rounding of sums in another order. fp32: one rounding of the statistics and one of the result.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_any_split_equals_one_device(pool: Pool, split: tuple[int, ...], dtype: torch.dtype, tolerance: float) -> None:
    x = (torch.randn(sum(split), 5, 6, 7, dtype=torch.float64) * 2 + 1).to(dtype)
    probe = torch.randn_like(x)
    reference = _trained(nn.BatchNorm2d(5, dtype=torch.float64))
    state = {key: value.clone() for key, value in reference.state_dict().items()}
    if dtype == torch.float32:
        state = {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}
        reference.load_state_dict(state)
    expected = _step(reference, x.double(), probe.double())

    results = pool.run(_split_step, len(split), state, x, probe, split)

    for name in ("y", "dx"):
        assert relative_error(torch.cat([result[name] for result in results]), expected[name]) < tolerance, name
    for name in ("grad.weight", "grad.bias"):
        assert relative_error(sum(result[name] for result in results), expected[name]) < tolerance, name
    for result in results:
        for name in ("running_mean", "running_var"):
            assert relative_error(result[name], expected[name]) < tolerance, name


def test_order_of_the_workers_does_not_matter(pool: Pool) -> None:
    x = torch.randn(8, 4, 3, dtype=torch.float64)
    probe = torch.randn_like(x)
    state = _trained(nn.BatchNorm1d(4, dtype=torch.float64)).state_dict()
    parts, probes = x.split((1, 5, 2)), probe.split((1, 5, 2))

    first = pool.run(_split_step, 3, state, x, probe, (1, 5, 2))
    second = pool.run(_split_step, 3, state, torch.cat(parts[::-1]), torch.cat(probes[::-1]), (2, 5, 1))

    for forwards, backwards in zip(first, second[::-1], strict=True):
        for name, value in forwards.items():
            assert relative_error(backwards[name], value) < 1e-12, name


@pytest.mark.parametrize("dims", [2, 3, 4, 5])
@pytest.mark.parametrize(
    ("momentum", "affine", "track", "eps"),
    list(itertools.product([0.1, 0.7, None], [True, False], [True, False], [1e-5, 1e-2])),
)
def test_alone_it_is_batch_norm(dims: int, momentum: float | None, affine: bool, track: bool, eps: float) -> None:
    arguments: dict[str, Any] = {"eps": eps, "momentum": momentum, "affine": affine, "track_running_stats": track}
    plain = PLAIN[dims](3, dtype=torch.float64, **arguments)
    ours = SyncBatchNorm(3, dtype=torch.float64, **arguments)
    ours.load_state_dict(plain.state_dict())

    for mode in (True, True, False):
        x = torch.randn(6, 3, *[4] * (dims - 2), dtype=torch.float64)
        expected = _step(plain.train(mode), x, x.cos())
        found = _step(ours.train(mode), x, x.cos())
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            assert relative_error(found[name], value) < 1e-12, (name, mode)
    assert ours.state_dict().keys() == plain.state_dict().keys()
    torch.testing.assert_close(ours.state_dict(), plain.state_dict(), rtol=1e-12, atol=1e-12)
