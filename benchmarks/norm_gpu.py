"""SyncBatchNorm on one GPU in bfloat16, forward and backward, against torch.nn.SyncBatchNorm and cuDNN's batch norm.

One worker on NCCL. Both synchronized layers really exchange, though there is nobody else: nn.SyncBatchNorm alone would
fall back to local batch normalization, so its autograd function is called, and ours is told that it is one of two.
"""

from __future__ import annotations

import functools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu
from torch.nn.modules._functions import SyncBatchNorm as TorchSyncFunction

from benchmarks.harness import Row, Table
from syncnorm.norm import SyncBatchNorm
from syncnorm.norm.backends import cuda_aten as cuda_native
from syncnorm.norm.backends import fused, triton_launches
from syncnorm.norm.backends.dispatch import use_backend
from syncnorm.norm.native import extension

PEER = "torch.nn.SyncBatchNorm"
SHAPES = {
    "(32,256,56,56)": (32, 256, 56, 56),
    "(4,64,200,304)": (4, 64, 200, 304),  # a detector's first stage, four images a GPU
    "(2,256,14,14)": (2, 256, 14, 14),
    "(32,2048,7,7)": (32, 2048, 7, 7),
    "(2,32,96,96,96)": (2, 32, 96, 96, 96),  # a 3-D segmenter
}
LAYOUTS = {"NCHW": False, "channels_last": True}


Context = Callable[[], AbstractContextManager[object]]


class Competitor(NamedTuple):
    """One step, and what has to hold while it runs."""

    step: Callable[[], object]
    context: Context


class TorchSync(nn.SyncBatchNorm):
    """nn.SyncBatchNorm's computation with its exchange also where there is one worker."""

    def forward(self, x: Tensor) -> Tensor:
        self.num_batches_tracked.add_(1)
        return TorchSyncFunction.apply(
            x, self.weight, self.bias, self.running_mean, self.running_var, self.eps, self.momentum,
            dist.group.WORLD, dist.get_world_size(),
        )  # fmt: skip


def exchanging() -> AbstractContextManager[object]:
    """Within it a worker exchanges as one of two."""
    return patch("syncnorm.norm.distributed.collectives.world_size", lambda _: 2)


@functools.cache
def node() -> Any:
    """The node in C++, which is compiled now; None where that fails."""
    try:
        extension.compile_now(extension=extension.CUDA_NODE)
    except RuntimeError as error:
        print(f"norm_gpu: without the node in C++: {error}")
    with patch.dict(os.environ, SYNCNORM_NODE="cuda"):
        return triton_launches.node.__wrapped__(torch.device("cuda", torch.cuda.current_device()))


@contextmanager
def in_cpp() -> Iterator[None]:
    with exchanging(), patch.object(triton_launches, "node", lambda _: node()):
        yield


@contextmanager
def native_operators() -> Iterator[None]:
    with exchanging(), patch.dict(fused._KERNELS, cuda=(cuda_native,)):
        yield


@contextmanager
def reference() -> Iterator[None]:
    with exchanging(), use_backend("reference"):
        yield


def _steps(shape: tuple[int, ...], is_channels_last: bool, in_block: bool) -> dict[str, Competitor]:
    kept = (torch.channels_last if len(shape) == 4 else torch.channels_last_3d) if is_channels_last else None
    x, dy, residual = (torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    if kept is not None:
        x, dy, residual = (tensor.to(memory_format=kept) for tensor in (x, dy, residual))
    x.requires_grad_()
    residual.requires_grad_()
    local = nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm3d

    def step(layer: nn.Module, context: Context, compiled: bool = False) -> Competitor:
        def block(x: Tensor, residual: Tensor) -> Tensor:
            y = layer(x)
            return relu(y + residual) if in_block else y

        called = torch.compile(block, fullgraph=True) if compiled else block
        wanted = [x, *layer.parameters(), *([residual] if in_block else [])]

        return Competitor(lambda: torch.autograd.grad(called(x, residual), wanted, dy), context)

    C = shape[1]
    steps = {
        PEER: step(TorchSync(C, device="cuda"), nullcontext),
        "ours": step(SyncBatchNorm(C, device="cuda"), exchanging),
        **({"ours, node in C++": step(SyncBatchNorm(C, device="cuda"), in_cpp)} if node() else {}),
        "ours, torch.compile": step(SyncBatchNorm(C, device="cuda"), exchanging, compiled=True),
        "ours, PyTorch's operators": step(SyncBatchNorm(C, device="cuda"), native_operators),
        "ours, one worker": step(SyncBatchNorm(C, device="cuda"), nullcontext),
        "local batch norm": step(local(C, device="cuda"), nullcontext),
    }
    return steps if in_block else steps | {"ours, reference": step(SyncBatchNorm(C, device="cuda"), reference)}


def _resnet_steps(batch: int, with_graphs: bool) -> dict[str, Competitor]:
    """A training step of torchvision's ResNet-50 in bfloat16 and channels_last, 53 norm layers."""
    from torchvision.models import resnet50

    x = torch.randn(batch, 3, 224, 224, device="cuda").to(memory_format=torch.channels_last)
    target = torch.randint(1000, (batch,), device="cuda")

    def competitors(name: str, norm: Callable[[int], nn.Module], context: Context) -> dict[str, Competitor]:
        net = resnet50(norm_layer=norm).cuda().to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)

        def step() -> None:
            optimizer.zero_grad()
            with torch.autocast("cuda", torch.bfloat16):
                loss = cross_entropy(net(x), target)
            loss.backward()
            optimizer.step()

        found = {name: Competitor(_awaited(step), context)}
        if with_graphs:
            found[f"{name}, CUDA graph"] = Competitor(_awaited(_graphed(step, context)), nullcontext)
        return found

    return (
        competitors(PEER, TorchSync, nullcontext)
        | competitors("ours", SyncBatchNorm, exchanging)
        | (competitors("ours, node in C++", SyncBatchNorm, in_cpp) if node() else {})
        | competitors("local batch norm", nn.BatchNorm2d, nullcontext)
    )


def _awaited(step: Callable[[], object]) -> Callable[[], None]:
    def call() -> None:
        step()
        torch.cuda.synchronize()

    return call


def _graphed(step: Callable[[], object], context: Context) -> Callable[[], None]:
    """Replays `step`, which is captured whole, the optimizer too."""
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with context():
        with torch.cuda.stream(stream):
            for _ in range(3):
                step()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            step()
    return graph.replay


def _seconds(
    competitors: Mapping[str, Competitor], rounds: int, lag_cycles: int = 8_000_000
) -> dict[str, dict[str, list[float]]]:
    """By competitor: of the GPU between two events, and of the host for issuing the work, of every round.

    The GPU starts later than the host by lag_cycles (8e6: some 4 ms), so that only what waits for it takes long.
    """
    times: dict[str, dict[str, list[float]]] = {name: {"gpu": [], "host": []} for name in competitors}
    for number in range(rounds + 5):
        for name, (step, context) in competitors.items():
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            with context():
                torch.cuda.synchronize()
                torch.cuda._sleep(lag_cycles)
                begin.record()
                started = time.perf_counter()
                step()
                taken = time.perf_counter() - started
                end.record()
            end.synchronize()
            if number >= 5:  # the first rounds compile and allocate
                times[name]["host"].append(taken)
                times[name]["gpu"].append(begin.elapsed_time(end) / 1e3)
    return times


def run(rounds: int = 60) -> Table | None:
    """None where there is no GPU."""
    if not torch.cuda.is_available():
        print("norm_gpu: needs a CUDA device")
        return None
    rows = []
    with one_worker():
        for name, shape in SHAPES.items():
            for layout, is_channels_last in LAYOUTS.items():
                for in_block in (False, True):
                    torch.compiler.reset()
                    times = _seconds(_steps(shape, is_channels_last, in_block), rounds)
                    setting = f"{name} {layout}" + (" + residual, ReLU" if in_block else "")
                    for clock in ("gpu", "host"):
                        rows += _rows(f"{setting} [{clock}]", {key: value[clock] for key, value in times.items()})
        for batch in (4, 64):
            rows += resnet_rows(batch, max(rounds // 2, 2))
    return Table("norm_gpu", f"{PEER} on {torch.cuda.get_device_name()}", rows, workers=1)


@contextmanager
def one_worker() -> Iterator[None]:
    """Within it this process is a process group on NCCL."""
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group(
            "nccl", init_method=f"file://{folder}/store", rank=0, world_size=1, device_id=torch.device("cuda", 0)
        )
        yield
        dist.destroy_process_group()


def resnet_rows(batch: int, rounds: int, *, with_graphs: bool = True) -> list[Row]:
    """with_graphs: each competitor also from a CUDA graph."""
    times = _seconds(_resnet_steps(batch, with_graphs), rounds, lag_cycles=0)
    return _rows(f"ResNet-50 step, {batch} images", {key: value["host"] for key, value in times.items()})


def _rows(setting: str, times: Mapping[str, list[float]]) -> list[Row]:
    best, median = min(times[PEER]), statistics.median(times[PEER])
    return [
        Row(setting, name, min(taken), statistics.median(taken), min(taken) / best, statistics.median(taken) / median)
        for name, taken in times.items()
    ]
