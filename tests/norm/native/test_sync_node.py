"""The synchronized layer as a node in C++: the bits of the function in Python, and its errors."""

from __future__ import annotations

import gc
import os
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from syncnorm.norm import SyncBatchNorm
from syncnorm.norm.distributed.call_headers import WorkerGoneError
from syncnorm.norm.distributed.timing import ExchangeTimer, timing
from syncnorm.norm.native.extension import is_possible, node
from tests.helpers.norm.memory import resident_bytes
from tests.helpers.norm.pool import Pool
from tests.helpers.norm.trained_layer import trained

pytestmark = pytest.mark.skipif(
    not is_possible() or os.environ.get("SYNCNORM_NODE") == "0", reason="no compiler, or switched off"
)

NAME = "torch::autograd::CppNode<syncnorm::SyncBatchNorm>"
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
SHAPES = [(5, 3), (300, 65), (2, 3, 7), (2, 5, 33, 32), (1, 130, 3, 3), (2, 3, 3, 4, 5), (4, 3, 1, 1)]


@contextmanager
def nodes(are_wanted: bool) -> Iterator[None]:
    """Within it, this process computes by the nodes in C++, or by the functions in Python."""
    os.environ["SYNCNORM_NODE"] = str(int(are_wanted))
    node.cache_clear()
    try:
        yield
    finally:
        del os.environ["SYNCNORM_NODE"]
        node.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("by_rows", [False, True])
@pytest.mark.parametrize("options", [{}, {"affine": False}, {"momentum": None}, {"track_running_stats": False}])
def test_bits_are_those_of_the_function_in_python(
    dtype: torch.dtype, by_rows: bool, options: dict[str, object]
) -> None:
    for shape in SHAPES:
        x, dy = (torch.randn(shape).to(dtype) for _ in range(2))
        if by_rows and len(shape) in FORMATS:
            x = x.to(memory_format=FORMATS[len(shape)])
        results = []
        for are_wanted in (True, False):
            affine = torch.float64 if dtype == torch.float64 else torch.float32
            layer = SyncBatchNorm(shape[1], dtype=affine, **options)  # type: ignore[arg-type]
            with nodes(are_wanted):
                assert (layer(x.requires_grad_()).grad_fn.name() == NAME) == are_wanted
                results.append(trained(layer, x.detach(), dy, 2))
        for ours, its in zip(*results, strict=True):
            assert torch.equal(ours, its)
            assert ours.stride() == its.stride()


def test_affine_of_another_dtype() -> None:
    layer, x = SyncBatchNorm(4, dtype=torch.bfloat16), torch.randn(3, 4, 5).bfloat16()

    results = []
    for are_wanted in (True, False):
        with nodes(are_wanted):
            results.append(torch.autograd.grad(layer(x).float().square().sum(), [*layer.parameters()]))

    for ours, its in zip(*results, strict=True):
        assert torch.equal(ours, its)
        assert ours.dtype == its.dtype


def test_expanded_gradient_and_saved_input_in_another_format() -> None:
    x = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last).requires_grad_()
    layer = SyncBatchNorm(3)
    (expected,) = torch.autograd.grad(nn.BatchNorm2d(3)(x).sum(), x)

    (found,) = torch.autograd.grad(layer(x).sum(), x)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t.contiguous()):
        (unpacked,) = torch.autograd.grad(layer(x).sum(), x)

    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(unpacked, expected, atol=1e-5, rtol=0)


def test_first_and_second_derivative() -> None:
    layer = SyncBatchNorm(2, dtype=torch.float64)
    x = torch.randn(3, 2, 2, 3, dtype=torch.float64, requires_grad=True)

    assert layer(x).grad_fn.name() == NAME
    torch.autograd.gradcheck(layer, x)
    torch.autograd.gradgradcheck(layer, x)


def test_input_changed_in_place_before_backward_is_noticed() -> None:
    x = torch.randn(4, 3, requires_grad=True) * 1
    y = SyncBatchNorm(3)(x)
    x.mul_(2)

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("buffer", ["running_mean", "num_batches_tracked"])
def test_statistics_that_the_kernels_do_not_take_go_to_torch(buffer: str) -> None:
    layer, plain = SyncBatchNorm(3), nn.BatchNorm1d(3)
    for module in (layer, plain):
        given = getattr(module, buffer)
        setattr(module, buffer, given.to(torch.int32 if given.dtype == torch.int64 else torch.bfloat16))
    layer.running_var = layer.running_var.to(layer.running_mean.dtype)
    x = torch.randn(4, 3, requires_grad=True)

    y = layer(x)

    assert y.grad_fn.name() != NAME
    torch.testing.assert_close(y, nn.BatchNorm1d(3)(x))


def test_ten_thousand_calls_keep_nothing() -> None:
    layer, x, dy = SyncBatchNorm(8), torch.randn(2, 8, 16, 16, requires_grad=True), torch.randn(2, 8, 16, 16)

    def step() -> None:
        torch.autograd.grad(layer(x), [x, *layer.parameters()], dy)
        layer(x)  # a graph that nobody runs

    for _ in range(1000):
        step()
    before = resident_bytes()
    for _ in range(10000):
        step()

    assert resident_bytes() - before < 10000 * x.nbytes / 10


def test_layer_that_keeps_its_output_goes_with_it() -> None:
    layer = SyncBatchNorm(3)
    layer.last = layer(torch.randn(4, 3))
    found = weakref.ref(layer)

    del layer

    gc.collect()
    assert found() is None


# Between workers.


def _on_ranks(rank: int, world_size: int, without: set[int]) -> list[Tensor]:
    torch.manual_seed(rank)
    with nodes(rank not in without):
        x, dy = torch.randn(rank, 5, 4), torch.randn(rank, 5, 4)  # rank 0 brings no sample
        return trained(nn.Sequential(SyncBatchNorm(5), SyncBatchNorm(5)), x, dy, 2)


def test_workers_with_and_without_nodes_meet(pool: Pool) -> None:
    expected = pool.run(_on_ranks, 3, {0, 1, 2})

    for without in (set[int](), {1}, {0, 2}):
        for found, its in zip(pool.run(_on_ranks, 3, without), expected, strict=True):
            assert all(torch.equal(ours, others) for ours, others in zip(found, its, strict=True))


def _dies_before_backward(rank: int, world_size: int) -> None:
    layer = SyncBatchNorm(3)
    y = layer(torch.randn(4, 3, requires_grad=True))
    assert y.grad_fn is not None
    assert y.grad_fn.name() == NAME
    if rank == 1:
        os._exit(3)
    with pytest.raises(
        WorkerGoneError, match=r"statistics of SyncBatchNorm \(backward, call 1, 6 numbers\), but rank 1"
    ):
        y.sum().backward()


def test_death_of_a_worker_ends_the_wait_of_backward() -> None:
    own = Pool(timeout_s=60)
    try:
        with pytest.raises(RuntimeError, match="rank 1 of 2 died"):
            own.run(_dies_before_backward, 2)
    finally:
        own.stop()


def _times(rank: int, world_size: int) -> float:
    layer, timer = SyncBatchNorm(3), ExchangeTimer()
    x = torch.randn(4, 3, requires_grad=True)
    layer(x).sum().backward()
    time.sleep(0.6 * rank)  # longer than the wait in C
    with timing(timer):
        y = layer(x)
    layer(x)
    time.sleep(0.2 * rank)
    with timing(timer):
        y.sum().backward()
    return timer.read_s()


def test_exchanges_of_the_node_are_timed(pool: Pool) -> None:
    first, second = pool.run(_times, 2)

    assert first > 0.7
    assert 0 < second < 0.6
