from __future__ import annotations

import copy
import itertools
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from syncnorm.norm import SyncBatchNorm
from syncnorm.norm.backends.dispatch import use_backend
from tests.helpers.combinations import each_value
from tests.helpers.norm.pool import Pool
from tests.helpers.norm.splits import SPLITS, WAYS, counted, part, relative_error, way

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
    rank: int,
    world_size: int,
    state: dict[str, Tensor],
    x: Tensor,
    probe: Tensor,
    split: tuple[int, ...],
    chosen: tuple[str, str] = WAYS[0],
) -> dict[str, Tensor]:
    layer = SyncBatchNorm(x.shape[1], dtype=state["weight"].dtype)
    layer.load_state_dict(state)
    with way(*chosen):
        return _step(layer, part(x, split, rank), part(probe, split, rank))


def _trained(layer: nn.Module) -> nn.Module:
    for name, tensor in layer.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.5 if "var" in name else torch.randn_like(tensor))
    return layer


@pytest.mark.parametrize(("split", "chosen"), each_value(SPLITS, WAYS))
# fp64: rounding of sums in another order. fp32: one rounding of the statistics and one of the result.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_any_split_equals_one_device(
    pool: Pool, split: tuple[int, ...], dtype: torch.dtype, tolerance: float, chosen: tuple[str, str]
) -> None:
    x = (torch.randn(sum(split), 5, 6, 7, dtype=torch.float64) * 2 + 1).to(dtype)
    probe = torch.randn_like(x)
    reference = _trained(nn.BatchNorm2d(5, dtype=torch.float64))
    state = {key: value.clone() for key, value in reference.state_dict().items()}
    if dtype == torch.float32:
        state = {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}
        reference.load_state_dict(state)
    expected = _step(reference, x.double(), probe.double())

    results = pool.run(_split_step, len(split), state, x, probe, split, chosen)

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


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtype_and_memory_format_are_kept(dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    x = torch.randn(6, 5, 4, 3, dtype=torch.float64).to(dtype).to(memory_format=memory_format)
    probe = torch.randn_like(x)
    expected = _step(nn.BatchNorm2d(5, dtype=torch.float64), x.double(), probe.double())

    found = _step(SyncBatchNorm(5, dtype=torch.promote_types(dtype, torch.float32)), x, probe)

    assert found["y"].dtype == found["dx"].dtype == dtype
    assert found["y"].is_contiguous(memory_format=memory_format)
    # Statistics are float32 or wider; only the output is rounded to the dtype of x.
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}[dtype]
    for name in ("y", "dx"):
        assert relative_error(found[name], expected[name]) < tolerance, name
    for name in ("running_mean", "running_var", "grad.weight"):
        assert relative_error(found[name], expected[name]) < max(1e-12, min(tolerance, 1e-5)), name


def test_strided_input_and_gradient() -> None:
    x = torch.randn(4, 6, 5, 8, dtype=torch.float64)[:, ::2, :, ::2]
    layer, plain = SyncBatchNorm(3, dtype=torch.float64), nn.BatchNorm2d(3, dtype=torch.float64)

    for module in (layer, plain):
        module.input = x.detach().clone().requires_grad_()
        module(module.input[..., ::2]).transpose(2, 3).cos().sum().backward()

    assert relative_error(layer.input.grad, plain.input.grad) < 1e-12


def test_no_bias_as_in_torch() -> None:
    layer = SyncBatchNorm(3, bias=False)

    y = layer(torch.randn(4, 3))

    assert layer.bias is None
    torch.testing.assert_close(y.mean(0), torch.zeros(3), atol=1e-6, rtol=0)


@pytest.mark.parametrize("chosen", WAYS)
@pytest.mark.parametrize("split", [(1,), (1, 0), (0, 0, 1)])
def test_one_value_in_the_whole_group_raises_everywhere(
    pool: Pool, split: tuple[int, ...], chosen: tuple[str, str]
) -> None:
    x = torch.randn(1, 3)
    state = nn.BatchNorm1d(3).state_dict() | {"weight": torch.ones(3)}

    outcomes = pool.outcomes(_split_step, len(split), state, x, x, split, chosen)

    for ok, error, _ in outcomes:
        assert not ok
        assert isinstance(error, ValueError)
        assert "needs more than one value per channel over the whole group" in str(error)


def test_one_value_on_one_worker_is_fine(pool: Pool) -> None:
    x = torch.randn(3, 4)

    results = pool.run(_split_step, 2, nn.BatchNorm1d(4).state_dict(), x, x, (1, 2))

    assert torch.isfinite(results[0]["y"]).all()


def test_empty_batch_everywhere_leaves_the_buffers_alone(pool: Pool) -> None:
    x = torch.zeros(0, 4, 3)
    state = _trained(nn.BatchNorm1d(4)).state_dict()

    results = pool.run(_split_step, 2, state, x, x, (0, 0))

    for result in results:
        assert result["y"].shape == (0, 4, 3)
        torch.testing.assert_close(result["running_mean"], state["running_mean"])
        torch.testing.assert_close(result["running_var"], state["running_var"])


def _poisoned(rank: int, world_size: int, chosen: tuple[str, str]) -> tuple[dict[str, Tensor], int, Tensor]:
    layer = SyncBatchNorm(3)
    x = torch.randn(4, 3)
    with way(*chosen):
        layer(x)
        before = {name: value.clone() for name, value in layer.state_dict().items()}
        if rank == 1:
            x[2, 1] = float("nan")
        y = layer(x)
        torch.testing.assert_close(layer.state_dict(), before, rtol=0, atol=0)
    return layer.state_dict(), int(layer.num_non_finite_batches), y


# https://github.com/pytorch/pytorch/issues/88474
@pytest.mark.parametrize("chosen", WAYS)
def test_non_finite_batch_on_one_worker_poisons_no_buffer_and_is_counted(pool: Pool, chosen: tuple[str, str]) -> None:
    results = pool.run(_poisoned, 2, chosen)

    for state, num_non_finite, y in results:
        assert set(state) == set(nn.BatchNorm1d(3).state_dict())
        assert num_non_finite == 1
        assert torch.isnan(y[:, 1]).all()  # as with one device and the large batch
        assert torch.isfinite(y[:, [0, 2]]).all()


def _evaluated(rank: int, world_size: int) -> Tensor:
    torch.manual_seed(rank)
    layer = SyncBatchNorm(3).eval()
    with counted() as number:
        y = layer(torch.randn(4, 3))
        assert number() == 0
    return y


def test_eval_exchanges_nothing(pool: Pool) -> None:
    first, second = pool.run(_evaluated, 2)

    assert not torch.equal(first, second)


def _exchanges(rank: int, world_size: int, chosen: tuple[str, str], input_grad: bool) -> list[int]:
    layer = SyncBatchNorm(3)
    x = torch.randn(4, 3, 2, requires_grad=input_grad)
    with way(*chosen), counted() as number:
        y = layer(x).square().sum()
        found = [number()]
        y.backward()
        found.append(number())
    assert layer.weight.grad is not None
    return found


@pytest.mark.parametrize("chosen", WAYS)
def test_one_exchange_forward_and_one_backward(pool: Pool, chosen: tuple[str, str]) -> None:
    for found in pool.run(_exchanges, 2, chosen, True):
        assert found == [1, 2]


@pytest.mark.parametrize("chosen", WAYS)
def test_input_without_gradient_needs_no_exchange_backward(pool: Pool, chosen: tuple[str, str]) -> None:
    for found in pool.run(_exchanges, 2, chosen, False):
        assert found == [1, 1]


@pytest.mark.parametrize("backend", ["fused", "reference"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_first_and_second_derivative(backend: Any, memory_format: torch.memory_format) -> None:
    x = torch.randn(3, 2, 2, 3, dtype=torch.float64).to(memory_format=memory_format).requires_grad_()
    weight, bias = (torch.randn(2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    layer = SyncBatchNorm(2, dtype=torch.float64)

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))

    with use_backend(backend):
        assert torch.autograd.gradcheck(run, (x, weight, bias))
        assert torch.autograd.gradgradcheck(run, (x, weight, bias))


def _second_derivative(rank: int, world_size: int, x: Tensor, split: tuple[int, ...], backend: Any) -> Tensor:
    mine = part(x, split, rank).clone().requires_grad_()
    layer = SyncBatchNorm(x.shape[1], dtype=x.dtype)
    with use_backend(backend):
        (first,) = torch.autograd.grad(layer(mine).pow(3).sum(), mine, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), mine)
    return second


# https://github.com/pytorch/pytorch/issues/61222
@pytest.mark.parametrize("backend", ["fused", "reference"])
def test_gradient_penalty_over_workers_equals_one_device(pool: Pool, backend: Any) -> None:
    x = torch.randn(8, 3, 4, dtype=torch.float64)
    whole = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(nn.BatchNorm1d(3, dtype=x.dtype)(whole).pow(3).sum(), whole, create_graph=True)
    (expected,) = torch.autograd.grad(first.square().sum(), whole)

    results = pool.run(_second_derivative, 3, x, (2, 5, 1), backend)

    assert relative_error(torch.cat(results), expected) < 1e-11


def test_wrong_channels_say_what_to_change() -> None:
    with pytest.raises(ValueError, match=r"needs an input of shape \(N, 3, \*\), got \(4, 5\)"):
        SyncBatchNorm(3)(torch.randn(4, 5))


def test_pickles_and_copies_like_batch_norm() -> None:
    layer = SyncBatchNorm(3)
    layer(torch.randn(4, 3, requires_grad=True))

    again = pickle.loads(pickle.dumps(copy.deepcopy(layer)))

    torch.testing.assert_close(again.state_dict(), layer.state_dict())
