from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from syncnorm.norm import SyncBatchNorm
from syncnorm.norm.backends.dispatch import use_backend
from syncnorm.norm.layers.batch_renorm import BatchRenorm, RenormSchedule, SyncBatchRenorm
from tests.helpers.norm.pool import Pool
from tests.helpers.norm.splits import counted

SCHEDULE = RenormSchedule(r_max=1.5, d_max=0.5, warmup_steps=0, r_max_steps=1, d_max_steps=1)
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "sync_batch": lambda: SyncBatchNorm(4, dtype=torch.float64),
    "sync_batch_renorm": lambda: SyncBatchRenorm(4, dtype=torch.float64, schedule=SCHEDULE),
    "batch_renorm": lambda: BatchRenorm(4, dtype=torch.float64, schedule=SCHEDULE),
}


def _net(kind: str) -> nn.Sequential:
    torch.manual_seed(0)
    shared = LAYERS[kind]()
    # The shared layer runs twice in one segment, on inputs of the same shape.
    return nn.Sequential(nn.Linear(4, 4).double(), shared, nn.ReLU(), nn.Linear(4, 4).double(), shared, nn.Tanh())


def _trained(rank: int, world_size: int, kind: str, how: str, backend: Any) -> tuple[int, dict[str, Tensor]]:
    net = _net(kind)
    generator = torch.Generator().manual_seed(rank)
    batches = [torch.randn(5, 4, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(2)]
    with use_backend(backend), counted() as number:
        for _ in range(2):
            # Two forwards before two backwards, the later first: the order of recomputation is not that of the calls.
            losses = []
            for x in batches:
                y = net(x) if how == "plain" else checkpoint(net, x, use_reentrant=how == "reentrant")
                losses.append(y.square().sum())
            for loss in reversed(losses):
                loss.backward()
        exchanges = number()
    found = {f"grad.{name}": parameter.grad for name, parameter in net.named_parameters()}
    return exchanges, found | net.state_dict() | {"dx": batches[0].grad}


# https://github.com/pytorch/pytorch/issues/96136
@pytest.mark.parametrize(
    ("kind", "backend"),
    [("sync_batch", "fused"), ("sync_batch", "reference"), ("sync_batch_renorm", "fused"), ("batch_renorm", "fused")],
)
@pytest.mark.parametrize("how", ["reentrant", "non-reentrant"])
def test_checkpointed_net_updates_and_exchanges_once(pool: Pool, how: str, kind: str, backend: Any) -> None:
    expected = pool.run(_trained, 2, kind, "plain", backend)

    found = pool.run(_trained, 2, kind, how, backend)

    for (calls, values), (plain_calls, plain_values) in zip(found, expected, strict=True):
        assert calls == plain_calls
        assert values.keys() == plain_values.keys()
        for name, value in plain_values.items():
            torch.testing.assert_close(values[name], value, rtol=1e-12, atol=1e-12, msg=name)


def _checkpointed(layer: nn.Module, x: Tensor, probe: Tensor, how: str) -> Tensor:
    def run(x: Tensor) -> Tensor:
        return layer(x).pow(3)

    y = run(x) if how == "plain" else checkpoint(run, x, use_reentrant=how == "reentrant")
    return (y * probe).sum()


def _inputs(number: int) -> list[Tensor]:
    torch.manual_seed(1)
    return [(torch.randn(8, 4, 3, dtype=torch.float64) * (i + 1) + i).requires_grad_() for i in range(number)]


def _backward_between_forwards(layer: nn.Module, how: str) -> list[Tensor]:
    xs, probe = _inputs(3), torch.linspace(-1, 1, 96, dtype=torch.float64).view(8, 4, 3)
    first, second = (_checkpointed(layer, x, probe, how) for x in xs[:2])
    first.backward()
    third = _checkpointed(layer, xs[2], probe, how)
    second.backward()
    third.backward()
    return xs


def _many_calls(layer: nn.Module, how: str) -> list[Tensor]:
    xs, probe = _inputs(40), torch.linspace(-1, 1, 96, dtype=torch.float64).view(8, 4, 3)
    sum(_checkpointed(layer, x, probe, how) for x in xs).backward()
    return xs


class _Teacher(torch.autograd.Function):
    """Runs a forward of the layer on numbers of its own during backward, as a hook on a gradient may."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.Module, other: Tensor) -> Tensor:
        ctx.layer, ctx.other = layer, other
        return x * 1

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        with torch.no_grad():
            ctx.layer(ctx.other)
        return grad, None, None


def _forward_inside_a_backward(layer: nn.Module, how: str) -> list[Tensor]:
    (x, other), probe = _inputs(2), torch.linspace(-1, 1, 96, dtype=torch.float64).view(8, 4, 3)
    _Teacher.apply(_checkpointed(layer, x, probe, how), layer, other.detach()).backward()
    return [x]


def _nested(layer: nn.Module, how: str) -> list[Tensor]:
    (x, _), probe = _inputs(2), torch.linspace(-1, 1, 96, dtype=torch.float64).view(8, 4, 3)

    def run(x: Tensor) -> Tensor:
        return _checkpointed(layer, x * 2, probe, how) * layer(x).sin().sum()

    y = run(x) if how == "plain" else checkpoint(run, x, use_reentrant=how == "reentrant")
    y.backward()
    return [x]


SITUATIONS = {
    "a backward between forwards": _backward_between_forwards,
    "40 calls": _many_calls,
    "a forward inside a backward": _forward_inside_a_backward,
    "nested": _nested,
}


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")  # of the inner one, when nested
@pytest.mark.parametrize("situation", SITUATIONS.values(), ids=SITUATIONS)
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("how", ["reentrant", "non-reentrant"])
def test_second_run_takes_the_statistics_of_its_own_first(
    how: str, kind: str, situation: Callable[[nn.Module, str], list[Tensor]]
) -> None:
    plain, layer = LAYERS[kind](), LAYERS[kind]()

    expected, found = situation(plain, "plain"), situation(layer, how)

    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(layer.state_dict(), plain.state_dict(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("how", ["reentrant", "non-reentrant"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), 3.0])
def test_batch_with_nan_and_constant_batch_are_known_again(how: str, dtype: torch.dtype, value: float) -> None:
    layer = SyncBatchNorm(4)
    x = torch.randn(8, 4, 3).to(dtype)
    x[:, 0] = value
    x.requires_grad_()

    checkpoint(layer, x, use_reentrant=how == "reentrant").sum().backward()

    assert int(layer.num_batches_tracked) + int(layer.num_non_finite_batches) == 1


@pytest.mark.parametrize("how", ["reentrant", "non-reentrant"])
def test_layer_without_a_gradient_of_its_own_counts_once(how: str) -> None:
    layer = SyncBatchNorm(4, affine=False)
    net = nn.Sequential(layer, nn.Conv1d(4, 4, 1))
    # Reentrant checkpointing wants an input with a gradient somewhere.
    x, scale = torch.randn(8, 4, 3), torch.ones((), requires_grad=True)

    checkpoint(lambda x, scale: net(x) * scale, x, scale, use_reentrant=how == "reentrant").sum().backward()

    assert int(layer.num_batches_tracked) == 1


def test_forwards_that_nobody_runs_again_are_not_kept() -> None:
    from syncnorm.norm.layers.activation_checkpointing import _CALLS

    layer = SyncBatchNorm(3)
    with torch.no_grad():
        for _ in range(5):
            layer(torch.randn(4, 3))
    for use_reentrant in (True, False):
        checkpoint(layer, torch.randn(4, 3, requires_grad=True), use_reentrant=use_reentrant).sum().backward()

    assert [ref() for _, ref in _CALLS[layer] if ref() is not None] == []
