"""The synchronized layer's node in C++ on a CUDA device: the bits of the function in Python, without waiting."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from syncnorm.norm import SyncBatchNorm
from syncnorm.norm.backends import cuda_triton, triton_launches
from syncnorm.norm.distributed.timing import EXCHANGE, ExchangeTimer, timing
from syncnorm.norm.native import extension
from tests.helpers.norm.trained_layer import assert_same, trained

NAME = "torch::autograd::CppNode<syncnorm::DeviceBatchNorm>"
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
# One program a channel and several, planes and rows, and sizes that no power of two divides.
SHAPES = [(8, 16, 9, 9), (32, 3, 64, 64), (64, 130), (3, 2, 300, 301)]


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    if torch.cuda.is_available():
        extension.compile_now(extension=extension.CUDA_NODE)


@contextmanager
def nodes(are_wanted: bool) -> Iterator[None]:
    """Within it, this process computes by the node in C++, or by the functions in Python."""
    os.environ["SYNCNORM_NODE"] = "cuda" if are_wanted else "0"
    triton_launches.node.cache_clear()
    try:
        yield
    finally:
        del os.environ["SYNCNORM_NODE"]
        triton_launches.node.cache_clear()


@pytest.fixture(params=["alone", "exchanging"])
def group(request: pytest.FixtureRequest, nccl: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One worker, which exchanges nothing, or does by NCCL as several would."""
    if request.param == "exchanging":
        monkeypatch.setattr("syncnorm.norm.distributed.collectives.world_size", lambda _: 2)


@pytest.mark.usefixtures("nccl")
def test_node_launches_what_triton_launches() -> None:
    with nodes(True):
        assert triton_launches.node(torch.device("cuda", 0)) is not None


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels_last", [False, True])
def test_bits_are_those_of_the_function_in_python(
    shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool
) -> None:
    x, dy = (torch.randn(shape, device="cuda").to(dtype) for _ in range(2))
    if channels_last and len(shape) in FORMATS:
        x = x.to(memory_format=FORMATS[len(shape)])
    results = []
    for are_wanted in (True, False):
        layer = SyncBatchNorm(shape[1], device="cuda", dtype=torch.promote_types(dtype, torch.float32))
        with nodes(are_wanted):
            assert (layer(x.requires_grad_()).grad_fn.name() == NAME) == are_wanted  # type: ignore[union-attr]
            results.append(trained(layer, x.detach(), dy, 3))

    assert_same(*results)


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("options", [{"momentum": None}, {"affine": False}, {"bias": False}, {"eps": 0.5}], ids=str)
def test_bits_with_other_options(options: dict[str, Any]) -> None:
    x, dy = torch.randn(4, 6, 5, 5, device="cuda"), torch.randn(4, 6, 5, 5, device="cuda")
    results = []
    for are_wanted in (True, False):
        with nodes(are_wanted):
            results.append(trained(SyncBatchNorm(6, device="cuda", **options), x, dy, 3))

    assert_same(*results)


@pytest.mark.usefixtures("group")
def test_python_launches_only_in_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = SyncBatchNorm(6, device="cuda"), torch.randn(4, 6, 5, 5, device="cuda", requires_grad=True)
    with nodes(True):
        expected = torch.autograd.grad(layer(x).square().sum(), x)
        for step in ("measure", "finish_forward", "gradient_sums", "finish_backward"):
            monkeypatch.setattr(cuda_triton, step, None)

        found = torch.autograd.grad(layer(x).square().sum(), x)

    assert_same([*found], [*expected])


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.usefixtures("group")
def test_host_waits_for_nothing() -> None:
    layer, x = SyncBatchNorm(16, device="cuda"), torch.randn(8, 16, 9, 9, device="cuda", requires_grad=True)
    with nodes(True):
        layer(x).sum().backward()
        try:
            torch.cuda.set_sync_debug_mode("error")
            layer(x).sum().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.usefixtures("group")
def test_forward_and_backward_can_be_captured_in_a_graph() -> None:
    layer, x = SyncBatchNorm(8, device="cuda"), torch.randn(4, 8, 6, 6, device="cuda", requires_grad=True)
    expected, dy = nn.BatchNorm2d(8, device="cuda"), torch.randn(4, 8, 6, 6, device="cuda")
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with nodes(True):
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                torch.autograd.grad(layer(x), x, dy)
        torch.cuda.synchronize()
        layer.reset_running_stats()
        with torch.cuda.graph(graph):
            y = layer(x)
            (dx,) = torch.autograd.grad(y, x, dy)

    for _ in range(3):
        with torch.no_grad():
            x.copy_(torch.randn_like(x))
        graph.replay()
        wanted = expected(x)

    torch.testing.assert_close(y, wanted, rtol=1e-5, atol=1e-5)  # rounding of float32
    torch.testing.assert_close(dx, torch.autograd.grad(wanted, x, dy)[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.running_var, expected.running_var, rtol=1e-5, atol=1e-5)
    assert int(layer.num_batches_tracked) == 3


@pytest.mark.usefixtures("group")
def test_work_goes_to_the_current_stream() -> None:
    layer, x = SyncBatchNorm(64, device="cuda"), torch.randn(64, 64, 64, 64, device="cuda")
    stream = torch.cuda.Stream()
    with nodes(True):
        expected = layer(x).clone()
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(200_000_000)
            late = x * 1
            y = layer(late)

        assert not stream.query()  # nothing waited for the stream
        stream.synchronize()

    assert torch.equal(y, expected)


@pytest.mark.usefixtures("group")
def test_thread_that_has_not_used_the_gpu() -> None:
    layer, x = SyncBatchNorm(6, device="cuda"), torch.randn(4, 6, 5, 5, device="cuda")
    with nodes(True):
        expected, found = layer(x), []
        thread = threading.Thread(target=lambda: found.append(layer(x)))
        thread.start()
        thread.join()

    assert torch.equal(found[0], expected)


@pytest.mark.usefixtures("group")
def test_first_and_second_derivative() -> None:
    x = torch.randn(3, 2, 4, device="cuda", dtype=torch.float64, requires_grad=True)
    layer = SyncBatchNorm(2, device="cuda", dtype=torch.float64)
    with nodes(True):
        assert torch.autograd.gradcheck(layer, x)
        assert torch.autograd.gradgradcheck(layer, x)


@pytest.mark.usefixtures("exchanging")
def test_compiles_without_a_graph_break() -> None:
    layer, x = SyncBatchNorm(16, device="cuda"), torch.randn(8, 16, 9, 9, device="cuda")
    with nodes(True):
        y = torch.compile(layer, fullgraph=True)(x)

    torch.testing.assert_close(y, nn.BatchNorm2d(16, device="cuda")(x), rtol=1e-5, atol=1e-5)  # rounding of float32


@pytest.mark.usefixtures("exchanging")
def test_exchanges_are_timed_and_shown_in_traces() -> None:
    layer, x = SyncBatchNorm(3, device="cuda"), torch.randn(4, 3, device="cuda", requires_grad=True)
    timer = ExchangeTimer()
    with nodes(True):
        layer(x).sum().backward()
        with timing(timer):
            layer(x).sum().backward()
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            layer(x).sum().backward()

    assert timer.read_s() > 0
    assert [event.name for event in profiled.events()].count(EXCHANGE) == 2
