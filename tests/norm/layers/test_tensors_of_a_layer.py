"""Buffers and parameters that are not as the layer made them: nn.BatchNorm's results, or its errors."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from syncnorm import norm
from syncnorm.norm import SyncBatchNorm
from syncnorm.norm.backends import fused
from syncnorm.norm.backends.dispatch import use_backend
from syncnorm.norm.layers.batch_renorm import BatchRenorm, SyncBatchRenorm
from tests.helpers.norm.pool import Pool
from tests.helpers.norm.splits import way

Change = Callable[[nn.Module], object]
IMPLEMENTATIONS = ["compiled", "operators", "reference"]


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Each of the three that can compute a call on the CPU."""
    if request.param == "operators":
        monkeypatch.setitem(fused._KERNELS, "cpu", fused._KERNELS["cpu"][1:])
    with use_backend("reference" if request.param == "reference" else "fused"):
        yield request.param


def _strided(values: Tensor) -> Tensor:
    return torch.stack([values, values], 1)[:, 0]


def _replace(name: str, change: Callable[[Tensor], Tensor | None]) -> Change:
    return lambda layer: setattr(layer, name, change(getattr(layer, name)))


def _without_statistics(layer: nn.Module) -> None:
    layer.running_mean = layer.running_var = None


def _with_parameter(name: str, change: Callable[[Tensor], Tensor]) -> Change:
    return lambda layer: setattr(layer, name, nn.Parameter(change(getattr(layer, name).detach())))


def _negated_view(values: Tensor) -> Tensor:
    """The same numbers, as a view that says to negate what lies in memory."""
    return torch._neg_view(-values)


CHANGES: dict[str, Change] = {
    "strided running_var": _replace("running_var", _strided),
    "strided running_mean": _replace("running_mean", _strided),
    "int32 counter": _replace("num_batches_tracked", Tensor.int),
    "float counter": _replace("num_batches_tracked", Tensor.float),
    "counter with a dimension": _replace("num_batches_tracked", lambda counter: counter.view(1)),
    "no counter": _replace("num_batches_tracked", lambda _: None),
    "counter on meta": _replace("num_batches_tracked", lambda counter: counter.to("meta")),
    "no statistics": _without_statistics,
    "not tracked any more": lambda layer: setattr(layer, "track_running_stats", False),
    "strided weight": _with_parameter("weight", _strided),
}
ONLY_OURS: dict[str, Change] = {
    "running_var of float64": _replace("running_var", Tensor.double),
    "running_mean of float64": _replace("running_mean", Tensor.double),
    "running_mean of bfloat16": _replace("running_mean", Tensor.bfloat16),
    "negated view of a buffer": _replace("running_mean", _negated_view),
}
"""nn.BatchNorm refuses mixed dtypes, and writes past the sign of a view."""


def _trained(layer: nn.Module, x: Tensor, numbers: int = 2) -> list[Tensor]:
    """Outputs, gradients and buffers of steps on x."""
    found = []
    for _ in range(numbers):
        mine = x.clone().requires_grad_()
        y = layer(mine)
        y.mul(torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
        found += [y.detach(), mine.grad]
    return [*found, *(parameter.grad for parameter in layer.parameters()), *layer.state_dict().values()]


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("name", [*CHANGES, *ONLY_OURS])
def test_tensors_of_another_kind_give_what_batch_norm_gives(name: str) -> None:
    plain, ours = nn.BatchNorm1d(4), SyncBatchNorm(4)
    if name in CHANGES:
        CHANGES[name](plain)
    (CHANGES | ONLY_OURS)[name](ours)
    x = torch.randn(3, 4, 5) * 2 + 1

    expected, found = _trained(plain, x), _trained(ours, x)

    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        if not theirs.is_meta:
            # float32 once rounded; bfloat16 buffers are rounded at every step
            close = 1e-2 if mine.dtype == torch.bfloat16 else 1e-5
            torch.testing.assert_close(mine, theirs, rtol=close, atol=close, check_dtype=name in CHANGES)


@pytest.mark.usefixtures("implementation")
def test_narrow_counter_does_not_spill_into_its_neighbour() -> None:
    layer = SyncBatchNorm(4)
    memory = torch.tensor([-1, 77], dtype=torch.int32)  # eight bytes would carry over
    layer.num_batches_tracked = memory[0]

    layer(torch.randn(2, 4, 3))

    assert memory.tolist() == [0, 77]


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("name", ["weight", "bias", "running_mean", "running_var"])
@pytest.mark.parametrize("size", [1, 2, 6])
@pytest.mark.parametrize("make", [SyncBatchNorm, BatchRenorm, SyncBatchRenorm])
def test_wrong_size_is_refused_as_by_torch(name: str, size: int, make: type[nn.Module]) -> None:
    layer = make(4)
    if name in dict(layer.named_parameters()):
        setattr(layer, name, nn.Parameter(torch.ones(size)))
    else:
        setattr(layer, name, torch.ones(size))
    before = copy.deepcopy(layer.state_dict())

    # The layer goes by running_mean to say how many channels it has.
    kind, sentence = (
        (ValueError, "needs an input of shape") if name == "running_mean" else (RuntimeError, "elements not")
    )
    with pytest.raises(kind, match=sentence), torch.no_grad():
        layer(torch.randn(2, 4, 3))

    torch.testing.assert_close(layer.state_dict(), before, rtol=0, atol=0)


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("name", ["weight", "bias", "running_mean", "running_var"])
def test_tensor_without_storage_is_refused(name: str) -> None:
    layer = SyncBatchNorm(4)
    value = torch.ones(4, device="meta")
    setattr(layer, name, nn.Parameter(value) if name in ("weight", "bias") else value)

    with pytest.raises(RuntimeError, match=f"{name} must be on the device of the input, cpu, but it is on meta"):
        layer(torch.randn(2, 4, 3))


def _assigned() -> SyncBatchNorm:
    with torch.device("meta"):
        layer = SyncBatchNorm(3)
    layer.load_state_dict(nn.BatchNorm1d(3).state_dict(), assign=True)
    return layer


def _emptied() -> SyncBatchNorm:
    with torch.device("meta"):
        layer = SyncBatchNorm(3)
    layer = layer.to_empty(device="cpu")
    layer.num_non_finite_batches.fill_(8)  # memory that was somebody's
    layer.load_state_dict(nn.BatchNorm1d(3).state_dict())
    return layer


def _reset() -> SyncBatchNorm:
    layer = SyncBatchNorm(3)
    layer.num_non_finite_batches.fill_(8)
    layer.reset_running_stats()
    return layer


def _given_buffers() -> SyncBatchNorm:
    with torch.device("meta"):
        layer = SyncBatchNorm(3)
    for name, value in nn.BatchNorm1d(3).named_buffers():
        setattr(layer, name, value)
    for name, parameter in nn.BatchNorm1d(3).named_parameters():
        setattr(layer, name, parameter)
    return layer


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("make", [_assigned, _emptied, _reset, _given_buffers])
def test_layer_made_on_meta_counts_from_zero(make: Callable[[], SyncBatchNorm]) -> None:
    layer = make()
    x = torch.randn(2, 3, 4)

    torch.testing.assert_close(layer(x), nn.BatchNorm1d(3)(x))
    x[0, 0, 0] = math.nan
    layer(x)

    assert int(layer.num_batches_tracked) == 1
    assert int(layer.num_non_finite_batches) == 1
    assert layer.running_mean.isfinite().all()


@contextmanager
def _default_device(how: str) -> Iterator[None]:
    if how == "context":
        with torch.device("meta"):
            yield
        return
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("how", ["context", "setting"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_default_device_is_not_that_of_the_tensors(how: str, memory_format: torch.memory_format) -> None:
    layer, plain = SyncBatchNorm(3), nn.BatchNorm2d(3)
    x = torch.randn(4, 3, 2, 2).to(memory_format=memory_format).requires_grad_()
    expected = plain(x)
    (expected_dx,) = torch.autograd.grad(expected.pow(3).sum(), x)

    with _default_device(how):
        y = layer(x)
        (dx,) = torch.autograd.grad(y.pow(3).sum(), x)

    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(dx, expected_dx, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layer.state_dict(), plain.state_dict())


def _exchanged_under_a_default_device(rank: int, world_size: int, transport: str) -> Tensor:
    layer = SyncBatchNorm(3)
    x = torch.full((2, 3), float(rank)) + torch.eye(2, 3)
    with way("fused", transport), torch.device("meta"):
        layer(x)
    return layer.running_mean


@pytest.mark.parametrize("transport", ["shared memory", "gloo"])
def test_rows_travel_under_another_default_device(pool: Pool, transport: str) -> None:
    first, second = pool.run(_exchanged_under_a_default_device, 2, transport)

    torch.testing.assert_close(first, torch.tensor([0.1, 0.1, 0.05]), rtol=1e-6, atol=1e-6)
    assert torch.equal(first, second)


@pytest.mark.usefixtures("implementation")
def test_negated_view_as_input_and_gradient() -> None:
    values = torch.randn(4, 3, 5)
    layer, plain = SyncBatchNorm(3), nn.BatchNorm1d(3)
    x, again = _negated_view(values).requires_grad_(), values.clone().requires_grad_()

    y, expected = layer(x), plain(again)
    y.backward(_negated_view(values))
    expected.backward(values)

    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(x.grad, again.grad)


class Scaled(nn.Parameter):
    """A parameter of somebody's own class."""


@pytest.mark.usefixtures("implementation")
def test_parameter_of_another_class() -> None:
    layer, plain = SyncBatchNorm(3), nn.BatchNorm1d(3)
    layer.weight = Scaled(torch.full((3,), 2.0))
    plain.weight = nn.Parameter(torch.full((3,), 2.0))
    x = torch.randn(4, 3)

    torch.testing.assert_close(layer(x), plain(x))


@pytest.mark.usefixtures("implementation")
def test_pruned_channels_count_and_not_num_features() -> None:
    layer, plain = SyncBatchNorm(5), nn.BatchNorm1d(5)
    for module in (layer, plain):
        for name, buffer in (*module.named_buffers(), *module.named_parameters()):
            if buffer.dim():
                kept = buffer.detach()[:3].clone()
                setattr(module, name, nn.Parameter(kept) if name in ("weight", "bias") else kept)
    x = torch.randn(4, 3)

    torch.testing.assert_close(layer(x), plain(x))
    torch.testing.assert_close(layer.state_dict(), plain.state_dict())


@pytest.mark.parametrize("name", ["running_mean", "running_var"])
@pytest.mark.parametrize("make", [nn.BatchNorm1d, SyncBatchNorm, norm.GhostBatchNorm])
def test_half_of_the_statistics_is_refused_as_by_torch(make: type[nn.Module], name: str) -> None:
    layer = make(3)
    setattr(layer, name, None)

    with pytest.raises(ValueError, match="running_mean and running_var must either both be None or neither be None"):
        layer(torch.randn(4, 3))


@pytest.mark.parametrize("make", [SyncBatchNorm, norm.GhostBatchNorm])
def test_average_of_all_batches_needs_a_counter(make: type[nn.Module]) -> None:
    layer = make(3, momentum=None)
    layer.num_batches_tracked = None

    with pytest.raises(ValueError, match=r"momentum=None of .* needs num_batches_tracked, which is None"):
        layer(torch.randn(4, 3))


@pytest.mark.parametrize("name", ["running_mean", "running_var", "num_batches_tracked"])
@pytest.mark.parametrize("make", [BatchRenorm, SyncBatchRenorm])
def test_renormalization_needs_running_statistics(make: type[nn.Module], name: str) -> None:
    layer = make(3)
    setattr(layer, name, None)

    with pytest.raises(ValueError, match=f"corrects a batch towards the running statistics and needs {name}"):
        layer(torch.randn(4, 3))


@pytest.mark.parametrize("kind", ["sync_batch", "batch_renorm", "sync_batch_renorm", "ghost_batch", "noisy_batch"])
def test_statistics_that_are_not_tracked_any_more_stay(kind: str) -> None:
    layer = norm.build(kind, 3)
    layer(torch.randn(4, 3, 2, 2))
    before = copy.deepcopy(layer.state_dict())
    layer.track_running_stats = False

    layer(torch.randn(4, 3, 2, 2) + 5)

    torch.testing.assert_close(layer.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.bool, torch.complex64, torch.complex128])
@pytest.mark.parametrize(
    "kind", ["sync_batch", "sync_batch_renorm", "batch_renorm", "filter_response", "evo_s0", "box_cox"]
)
@pytest.mark.usefixtures("implementation")
def test_input_that_is_not_floating_point_is_refused(kind: str, dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=f"needs an input of floating-point numbers, got {dtype}"):
        norm.build(kind, 4)(torch.ones(2, 4, 3, 3).to(dtype))
