"""The node in C++ for a GPU, as far as a machine without one can tell: the bits of the function in Python.

Triton's interpreter runs the kernels on CPU tensors, and a function in Python stands for the driver's cuLaunchKernel.
"""

from __future__ import annotations

import ctypes
import logging
import os
import re
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from syncnorm.norm import SyncBatchNorm
from syncnorm.norm.backends import triton_launches
from syncnorm.norm.backends.triton_launches import Compiled, UnknownKernelError, describe, read
from syncnorm.norm.distributed.timing import EXCHANGE, ExchangeTimer, timing
from syncnorm.norm.native import extension
from tests.helpers.norm.interpreted_gpu import Driver, InterpretedPool, interpreted_gpu
from tests.helpers.norm.memory import resident_bytes
from tests.helpers.norm.trained_layer import assert_same, trained

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(not extension.is_possible(), reason="no compiler")

NAME = "torch::autograd::CppNode<syncnorm::DeviceBatchNorm>"
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
# The last ones have tiles for several programs a channel, whose rows a second kernel merges.
SHAPES = [(5, 3), (2, 3, 7), (2, 5, 2, 3), (2, 3, 3, 4, 5), (4, 3, 1, 1), (9, 2, 33, 32), (16, 3, 17, 19)]
FORWARD, BACKWARD = ["statistics", "merge", "normalize"], ["gradient_sums", "gradient_table", "differentiate"]


@pytest.fixture(scope="module", autouse=True)
def compiled() -> Path:
    return extension.compile_now(extension=extension.CUDA_NODE)


@pytest.fixture(scope="module")
def interpreted() -> Iterator[InterpretedPool]:
    """Runs functions in processes that interpret Triton's kernels."""
    pool = InterpretedPool()
    yield pool
    pool.stop()


def _compares(layer: Any, x: Tensor, dy: Tensor, launches: list[str] | None = None) -> list[Tensor]:
    """The results of the node, after comparing them with those of Python. layer: makes one. launches: by the node."""
    with interpreted_gpu(with_node=False) as driver:
        expected = trained(layer(), x, dy, 2)
        assert driver.launched == []
    with interpreted_gpu(with_node=True) as driver:
        triton_launches.node(x.device)
        driver.launched.clear()
        found = trained(layer(), x, dy, 2)
        assert launches is None or driver.launched == launches
    assert_same(found, expected)
    return found


def test_node_compiles_and_loads_in_a_process_without_a_gpu(compiled: Path) -> None:
    module = extension._load(extension.CUDA_NODE, compiled)

    assert compiled.name.startswith("cuda_node-")
    assert {"batch_norm", "bind", "launch"} <= set(dir(module))


# One worker.


def _gives_the_bits(_rank: int, _world_size: int, dtype: torch.dtype, by_rows: bool) -> None:
    torch.manual_seed(0)
    affine = torch.float64 if dtype == torch.float64 else torch.float32
    for shape in SHAPES:
        x, dy = (torch.randn(shape).to(dtype) for _ in range(2))
        if by_rows and len(shape) in FORMATS:
            x = x.to(memory_format=FORMATS[len(shape)])
        found = _compares(lambda: SyncBatchNorm(shape[1], dtype=affine), x, dy)  # noqa: B023
        exact = nn.functional.batch_norm(x.double(), None, None, None, None, True)
        torch.testing.assert_close(found[0].double(), exact, atol=2e-2, rtol=2e-2)  # rounding of bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("by_rows", [False, True])
def test_bits_are_those_of_the_function_in_python(
    interpreted: InterpretedPool, dtype: torch.dtype, by_rows: bool
) -> None:
    interpreted.run(_gives_the_bits, 1, dtype, by_rows)


def _launches_itself(*_: int) -> None:
    x, dy = torch.randn(4, 3, 5, 5), torch.randn(4, 3, 5, 5)
    _compares(lambda: SyncBatchNorm(3), x, dy, launches=[*FORWARD, *BACKWARD])
    x, dy = torch.randn(9, 2, 33, 32), torch.randn(9, 2, 33, 32)
    merging = ["statistics", "merge", *FORWARD[1:], "gradient_sums", "add_rows", *BACKWARD[1:]]
    _compares(lambda: SyncBatchNorm(2), x, dy, launches=merging)


def test_second_step_is_launched_from_cpp(interpreted: InterpretedPool) -> None:
    interpreted.run(_launches_itself, 1)


def _takes_odd_tensors(*_: int) -> None:
    x, dy = torch.randn(4, 3, 2, 5), torch.randn(4, 3, 2, 5)
    learned = [*FORWARD, *BACKWARD]
    _compares(lambda: SyncBatchNorm(3, dtype=torch.bfloat16), x.bfloat16(), dy.bfloat16(), learned)
    _compares(lambda: SyncBatchNorm(3, bias=False), x, dy, learned)
    _compares(lambda: SyncBatchNorm(3).half(), x, dy, learned)
    _compares(lambda: SyncBatchNorm(3), x, dy[:1, :1, :1, :1].expand(4, 3, 2, 5), learned)
    _compares(lambda: SyncBatchNorm(3), x.to(memory_format=torch.channels_last), dy, learned)

    def strided() -> nn.Module:
        layer = SyncBatchNorm(3)
        layer.weight = nn.Parameter(torch.tensor([1.0, 5, 2, 5, 3, 5])[::2])
        return layer

    _compares(strided, x, dy, learned)


def test_tensors_of_other_kinds_have_the_bits_too(interpreted: InterpretedPool) -> None:
    interpreted.run(_takes_odd_tensors, 1)


def _learns_addresses(*_: int) -> None:
    layer, memory = SyncBatchNorm(3), torch.randn(4 * 3 * 5 + 1)
    aligned, other = memory[:-1].view(4, 3, 5), memory[1:].view(4, 3, 5)
    with interpreted_gpu(with_node=True) as driver:
        layer(aligned)
        driver.launched.clear()
        layer(other)
        assert driver.launched == []
        for x in (aligned, other):
            layer(x)
            assert driver.launched == FORWARD
            driver.launched.clear()


def test_each_alignment_is_learned_since_triton_compiles_another_kernel_for_it(interpreted: InterpretedPool) -> None:
    interpreted.run(_learns_addresses, 1)


def _distinguishes_options(*_: int) -> None:
    x, dy = torch.randn(4, 3, 5), torch.randn(4, 3, 5)
    with interpreted_gpu(with_node=True):
        options: list[dict[str, Any]] = [
            {}, {"momentum": 0.5}, {"eps": 0.1}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}
        ]  # fmt: skip
        found = [trained(SyncBatchNorm(3, **each), x, dy, 2) for each in (*options, *options)]
    with interpreted_gpu(with_node=False):
        for ours, each in zip(found, (*options, *options), strict=True):
            assert_same(ours, trained(SyncBatchNorm(3, **each), x, dy, 2))


def test_layers_of_one_shape_and_other_options_keep_apart(interpreted: InterpretedPool) -> None:
    interpreted.run(_distinguishes_options, 1)


def _differentiates_some(*_: int) -> None:
    x = torch.randn(4, 3, 5)
    for frozen in (("weight",), ("bias",), ("weight", "bias"), ("x",)):
        results = []
        for with_node in (True, False):
            with interpreted_gpu(with_node=with_node):
                layer, leaf = SyncBatchNorm(3), x.clone().requires_grad_("x" not in frozen)
                wanted = [*[leaf][: "x" not in frozen]]
                for name, parameter in layer.named_parameters():
                    parameter.requires_grad_(name not in frozen)
                    wanted += [parameter] if name not in frozen else []
                results.append([g for _ in range(2) for g in torch.autograd.grad(layer(leaf).square().sum(), wanted)])
        assert_same(*results)


def test_frozen_parts_have_no_gradient(interpreted: InterpretedPool) -> None:
    interpreted.run(_differentiates_some, 1)


def _differentiates_twice(*_: int) -> None:
    layer = SyncBatchNorm(2, dtype=torch.float64)
    x = torch.randn(3, 2, 3, dtype=torch.float64, requires_grad=True)
    with interpreted_gpu(with_node=True):
        y = layer(x)
        assert y.grad_fn is not None
        assert y.grad_fn.name() == NAME
        assert torch.autograd.gradcheck(layer, x)
        assert torch.autograd.gradgradcheck(layer, x)


def test_first_and_second_derivative(interpreted: InterpretedPool) -> None:
    interpreted.run(_differentiates_twice, 1)


def _leaves_to_python(*_: int) -> None:
    def integers(layer: SyncBatchNorm) -> SyncBatchNorm:
        layer.num_batches_tracked = torch.zeros((), dtype=torch.int32)
        return layer

    def strided(layer: SyncBatchNorm) -> SyncBatchNorm:
        layer.running_var = torch.ones(6)[::2]
        return layer

    x = torch.randn(4, 3, 5, requires_grad=True)
    cases = [
        (integers(SyncBatchNorm(3)), x),
        (strided(SyncBatchNorm(3)), x),
        (SyncBatchNorm(3, momentum=-0.5), x),
        (SyncBatchNorm(5), x.transpose(1, 2)),
        (SyncBatchNorm(3), x[:0]),
    ]
    with interpreted_gpu(with_node=True):
        for layer, given in cases:
            y = layer(given)
            assert y.grad_fn is not None
            assert y.grad_fn.name() != NAME
            assert y.shape == given.shape


def test_what_the_node_does_not_take_goes_to_python(interpreted: InterpretedPool) -> None:
    interpreted.run(_leaves_to_python, 1)


def _counts_non_finite(*_: int) -> None:
    x, dy = torch.randn(4, 3, 5), torch.randn(4, 3, 5)
    x[1, 2, 3] = float("nan")
    found = _compares(lambda: SyncBatchNorm(3), x, dy)
    assert int(found[-1]) == 2  # in both steps


def test_non_finite_batches_are_counted(interpreted: InterpretedPool) -> None:
    interpreted.run(_counts_non_finite, 1)


def _notices_changes(*_: int) -> None:
    with interpreted_gpu(with_node=True):
        layer, x = SyncBatchNorm(3), torch.randn(4, 3, requires_grad=True) * 1
        for _ in range(2):
            before = layer.running_mean._version
            y = layer(x)
            assert layer.running_mean._version == before + 1
        x.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


def test_changes_in_place_are_seen_by_autograd(interpreted: InterpretedPool) -> None:
    interpreted.run(_notices_changes, 1)


def _lets_go(*_: int) -> None:
    with interpreted_gpu(with_node=True):
        layer = SyncBatchNorm(3)
        layer.last = layer(torch.randn(4, 3))
        found = weakref.ref(layer)
        del layer
        assert found() is None


def test_layer_that_keeps_its_output_goes_with_it(interpreted: InterpretedPool) -> None:
    interpreted.run(_lets_go, 1)


def _keeps_nothing(*_: int) -> None:
    layer, x = SyncBatchNorm(8), torch.randn(2, 8, 16, 16, requires_grad=True)
    with interpreted_gpu(with_node=True):
        idle = ctypes.cast(ctypes.CDLL(None).sched_yield, ctypes.c_void_p).value  # returns 0, as a launch does
        module = triton_launches.node(x.device)
        module.bind(idle, idle, ctypes.addressof(extension.exchange_clock), torch.empty(0))

        def steps(number: int) -> None:
            for _ in range(number):
                torch.autograd.grad(layer(x), [x, *layer.parameters()], x.detach())
                layer(x)  # a graph that nobody runs

        steps(500)
        before = resident_bytes()
        steps(3000)
        assert resident_bytes() - before < 3000 * x.nbytes / 10


def test_three_thousand_calls_keep_nothing(interpreted: InterpretedPool) -> None:
    interpreted.run(_keeps_nothing, 1)


# The driver and Triton.


def _survives_the_driver(*_: int) -> None:
    layer, x = SyncBatchNorm(3), torch.randn(4, 3, 5)
    with interpreted_gpu(with_node=True) as driver:
        expected = layer(x).detach()
        driver.statuses = [201]  # a thread without a context: torch makes one
        assert torch.equal(layer(x), expected)
        driver.statuses = [700]
        with pytest.raises(RuntimeError, match="cuLaunchKernel gave error 700 for a kernel of a synchronized layer"):
            layer(x)


def test_errors_of_the_driver(interpreted: InterpretedPool) -> None:
    interpreted.run(_survives_the_driver, 1)


class _Silent(Driver):
    """Launches nothing."""

    def _launch(self, *_: Any) -> int:
        return 0


def _runs_without(*_: int) -> list[str]:
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    extension.logger.addHandler(handler)
    layer, x = SyncBatchNorm(3), torch.randn(4, 3, 5, requires_grad=True)
    with interpreted_gpu(with_node=True, driver=_Silent):
        assert layer(x).grad_fn.name() != NAME  # type: ignore[union-attr]
    with interpreted_gpu(with_node=True) as driver:
        driver.changes = {"num_ctas": 2}
        assert layer(x).grad_fn.name() != NAME  # type: ignore[union-attr]
    with interpreted_gpu(with_node=True) as driver:
        layer(x)
        driver.changes, other = {"global_scratch_size": 64}, torch.randn(3, 3, 5)
        driver.launched.clear()
        assert torch.equal(layer(other), layer(other))
        assert driver.launched == []
    extension.logger.removeHandler(handler)
    return said


def test_triton_that_is_not_understood_launches_itself(interpreted: InterpretedPool) -> None:
    (said,) = interpreted.run(_runs_without, 1)

    reasons = [line.partition(": ")[2] for line in said]
    assert [reason[:45] for reason in reasons] == [
        "a kernel launched by the node gave [0.0, 0.0,",
        "statistics was compiled to be launched in a s",
        "statistics was compiled to be launched in a s",
        "merge was compiled to be launched in a specia",
    ]


def _is_off(*_: int) -> None:
    with interpreted_gpu(with_node=False):
        assert triton_launches.node(torch.device("cpu")) is None
        for wanted in ("0", "1"):
            os.environ["SYNCNORM_NODE"] = wanted
            triton_launches.node.cache_clear()
            assert triton_launches.node(torch.device("cpu")) is None


def test_node_is_off_unless_it_is_asked_for(interpreted: InterpretedPool) -> None:
    interpreted.run(_is_off, 1)


# Between workers.


def _on_ranks(rank: int, world_size: int, without: set[int], sizes: list[int]) -> list[Tensor]:
    torch.manual_seed(rank)
    with interpreted_gpu(with_node=rank not in without):
        x, dy = torch.randn(sizes[rank], 5, 4), torch.randn(sizes[rank], 5, 4)
        return trained(nn.Sequential(SyncBatchNorm(5), SyncBatchNorm(5)), x, dy, 3)


@pytest.mark.parametrize("sizes", [[2, 2], [1, 4], [0, 3]])
def test_workers_with_and_without_node_meet(interpreted: InterpretedPool, sizes: list[int]) -> None:
    expected = interpreted.run(_on_ranks, 2, {0, 1}, sizes)

    for without in (set[int](), {0}, {1}):
        for found, its in zip(interpreted.run(_on_ranks, 2, without, sizes), expected, strict=True):
            assert_same(found, its)


def _exchanges(rank: int, world_size: int) -> None:
    """In a group of its own, with the time taken and shown in a trace."""
    group = dist.new_group([0, 1])
    layer, x, timer = SyncBatchNorm(3, process_group=group), torch.randn(4, 3, requires_grad=True), ExchangeTimer()
    with interpreted_gpu(with_node=True):
        layer(x).sum().backward()
        with timing(timer):
            layer(x).sum().backward()
        assert timer.read_s() > 0
        layer(x).sum().backward()
        assert timer.read_s() == 0
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            layer(x).sum().backward()
        assert [event.name for event in profiled.events()].count(EXCHANGE) == 2


def test_exchanges_are_timed_and_shown_in_traces(interpreted: InterpretedPool) -> None:
    interpreted.run(_exchanges, 2)


def _ends_before_backward(rank: int, world_size: int) -> None:
    with interpreted_gpu(with_node=True):
        layer, x = SyncBatchNorm(3), torch.randn(4, 3, requires_grad=True)
        layer(x).sum().backward()
        y = layer(x)
        dist.destroy_process_group()
        y.sum().backward()  # as without torch.distributed


def test_backward_after_the_group_has_gone(interpreted: InterpretedPool) -> None:
    interpreted.run(_ends_before_backward, 2)


# What Triton's compiler gives back.

POINTERS = {"x": "*bf16", "rows": "*fp64"}
STATISTICS = POINTERS | dict.fromkeys(("A", "C", "inner_units", "num_tiles"), "i32")
CONSTANTS = {"VEC": 16, "BY_ROWS": False, "BA": 1, "BB": 2048}


def _compiled(special: dict[str, Any]) -> Any:
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from syncnorm.norm.backends.triton_kernels import statistics

    constants = {**CONSTANTS, "ACC": tl.float32, **special}
    signature = {name: "constexpr" if name in constants else STATISTICS[name] for name in statistics.arg_names}
    kernel = triton.compile(ASTSource(statistics, signature, constants), target=GPUTarget("cuda", 90, 32))
    kernel.function = 7
    return kernel


@pytest.mark.parametrize("special", [{}, {"C": 1}])
def test_arguments_are_those_of_the_compiled_kernel(special: dict[str, Any]) -> None:
    kernel = _compiled(special)
    values = (None, None, 32, special.get("C", 256), 196, 4, *CONSTANTS.values(), None)

    function, grid, threads, shared_bytes, arguments = describe(read(kernel), (256, 2), values)

    entry = re.search(r"\.visible \.entry statistics\((.*?)\)", kernel.asm["ptx"], re.DOTALL)
    assert entry is not None
    assert entry[1].count(".param") == len(arguments)
    assert entry[1].count(".param .u64") == sum(bits == 0 for _, bits in arguments)
    assert (function, grid, threads, shared_bytes) == (7, (256, 2, 1), 128, kernel.metadata.shared)
    numbers = [32, 256, 196, 4] if not special else [32, 196, 4]
    assert arguments == [(0, 0), (1, 0), *((-1, number) for number in numbers), (-1, 0), (-1, 0)]


def test_torch_has_the_function_that_gives_its_current_stream() -> None:
    assert triton_launches.current_stream() > 0


def test_numbers_are_passed_as_the_driver_reads_them() -> None:
    compiled = Compiled(7, 128, 0, ("fp32", "fp64", "i64", "i32", "constexpr"))

    _, grid, _, _, arguments = describe(compiled, (3,), (1.5, 1.5, -1, -1, None))

    assert grid == (3, 1, 1)
    assert arguments[:4] == [(-1, 0x3FC00000), (-1, 0x3FF8000000000000), (-1, -1), (-1, 0xFFFFFFFF)]


def test_another_triton_is_refused() -> None:
    with pytest.raises(UnknownKernelError, match="this Triton is not known: AttributeError"):
        read(object())
    with pytest.raises(UnknownKernelError, match="unknown type u8"):
        describe(Compiled(7, 128, 0, ("u8",)), (1,), (1,))
