"""torch.func and forward mode: the derivatives of nn.BatchNorm, on one device and over workers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

from syncnorm import norm
from syncnorm.norm import SyncBatchNorm
from tests.helpers.norm.pool import Pool
from tests.helpers.norm.splits import part, relative_error, way

# torch itself scripts the formulas of nn.BatchNorm's forward mode.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

Function = Callable[[Tensor], Tensor]


def _loss(y: Tensor) -> Tensor:
    return (y.pow(3) * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum()


def _forward_mode(f: Function, x: Tensor) -> Tensor:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(f(forward_ad.make_dual(x, x.cos()))).tangent.detach()


TRANSFORMS: dict[str, Callable[[Function, Tensor], Any]] = {
    "forward mode": _forward_mode,
    "grad": lambda f, x: torch.func.grad(lambda x: _loss(f(x)))(x),
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (x.cos(),)),
    "jacfwd": lambda f, x: torch.func.jacfwd(f)(x),
    "jacrev": lambda f, x: torch.func.jacrev(f)(x),
    "hessian": lambda f, x: torch.func.hessian(lambda x: _loss(f(x)))(x),
    "vmap": lambda f, x: torch.func.vmap(f)(torch.stack([x, x.cos(), 2 * x])),
    "vmap of grad": lambda f, x: torch.func.vmap(torch.func.grad(lambda x: _loss(f(x))))(torch.stack([x, x.cos()])),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize("affine", [True, False])
def test_transforms_give_what_batch_norm_gives(transform: Callable[[Function, Tensor], Any], affine: bool) -> None:
    arguments: dict[str, Any] = {"affine": affine, "track_running_stats": False, "dtype": torch.float64}
    plain, ours = nn.BatchNorm1d(2, **arguments), SyncBatchNorm(2, **arguments)
    x = torch.randn(3, 2, 2, dtype=torch.float64)

    torch.testing.assert_close(transform(ours, x), transform(plain, x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["forward mode", "grad", "jvp", "jacrev"])
@pytest.mark.parametrize("kind", ["sync_batch", "batch_renorm", "sync_batch_renorm"])
def test_running_statistics_move_once_and_by_plain_numbers(kind: str, name: str) -> None:
    layer, plain = norm.build(kind, 2, dims=1), norm.build(kind, 2, dims=1)
    x = torch.randn(3, 2, 4)

    TRANSFORMS[name](layer, x)
    plain(x)

    torch.testing.assert_close(layer.state_dict(), plain.state_dict())
    assert not any(torch._C._functorch.is_functorch_wrapped_tensor(buffer) for buffer in layer.buffers())
    with forward_ad.dual_level():
        assert all(forward_ad.unpack_dual(buffer).tangent is None for buffer in layer.buffers())


@pytest.mark.parametrize("kind", ["sync_batch", "sync_batch_renorm"])
def test_one_set_of_statistics_for_many_slices_is_refused(kind: str) -> None:
    layer = norm.build(kind, 2, dims=1)

    with pytest.raises(ValueError, match="Under vmap a layer in training has a batch for every slice"):
        torch.func.vmap(layer)(torch.randn(3, 4, 2, 5))


def test_ensemble_with_buffers_of_its_own() -> None:
    layers = [SyncBatchNorm(2) for _ in range(3)]
    for scale, layer in enumerate(layers, 1):
        nn.init.constant_(layer.weight, scale)
    parameters, buffers = torch.func.stack_module_state(layers)
    x = torch.randn(3, 4, 2, 5)

    def run(parameters: Any, buffers: Any, x: Tensor) -> Tensor:
        return torch.func.functional_call(layers[0], (parameters, buffers), x)

    y = torch.func.vmap(run)(parameters, buffers, x)

    for index, layer in enumerate(layers):
        torch.testing.assert_close(y[index], layer(x[index]))
        for name, buffer in layer.named_buffers():
            torch.testing.assert_close(buffers[name][index], buffer)


@pytest.mark.parametrize("vectorize", [True, False])
def test_vectorized_backward(vectorize: bool) -> None:
    plain, ours = nn.BatchNorm1d(2, dtype=torch.float64), SyncBatchNorm(2, dtype=torch.float64)
    x = torch.randn(3, 2, 2, dtype=torch.float64)

    expected, found = (torch.autograd.functional.jacobian(f, x, vectorize=vectorize) for f in (plain, ours))

    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_traced_graph_computes_the_layer() -> None:
    layer, x = SyncBatchNorm(3), torch.randn(4, 3, 5)
    expected = nn.BatchNorm1d(3)(x)

    traced = make_fx(layer)(x)

    torch.testing.assert_close(traced(x), expected)
    torch.testing.assert_close(traced(2 * x + 1), expected, rtol=1e-4, atol=1e-4)


def _over_workers(rank: int, world_size: int, x: Tensor, split: tuple[int, ...], name: str) -> Tensor:
    layer = SyncBatchNorm(x.shape[1], dtype=x.dtype, track_running_stats=False)
    mine = part(x, split, rank)
    with way("fused", "shared memory"):
        if name == "forward mode":
            return _forward_mode(layer, mine)
        if name == "vmap":
            return torch.func.vmap(layer)(torch.stack([mine, mine.cos()])).movedim(0, 1).detach()
        if name == "vmap of vjp":
            _, pull = torch.func.vjp(layer, mine)
            return torch.func.vmap(pull)(torch.stack([mine.cos(), mine.sin()]))[0].movedim(0, 1).detach()
        _, product = torch.func.jvp(torch.func.grad(lambda x: layer(x).pow(3).sum()), (mine,), (mine.cos(),))
        return product.detach()


@pytest.mark.parametrize("name", ["forward mode", "vmap", "vmap of vjp", "forward over reverse"])
def test_transforms_over_workers_equal_one_device(pool: Pool, name: str) -> None:
    x = torch.randn(8, 3, 4, dtype=torch.float64)
    (expected,) = pool.run(_over_workers, 1, x, (8,), name)

    results = pool.run(_over_workers, 3, x, (2, 5, 1), name)

    assert relative_error(torch.cat(results), expected) < 1e-11


def _vectorized(rank: int, world_size: int) -> None:
    x = torch.randn(4, 3, requires_grad=True)
    torch.autograd.grad(SyncBatchNorm(3)(x), x, torch.randn(2, 4, 3), is_grads_batched=True)


def test_vectorized_backward_over_workers_says_what_to_do(pool: Pool) -> None:
    for ok, error, _ in pool.outcomes(_vectorized, 2):
        assert not ok
        assert "can't exchange statistics in a vectorized backward" in str(error)
