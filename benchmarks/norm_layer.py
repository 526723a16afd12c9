"""One SyncBatchNorm layer, forward and backward, against local nn.BatchNorm2d on the same batch."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from benchmarks.detectron2_style import Detectron2StyleSyncBatchNorm
from benchmarks.harness import Table, compare
from syncnorm.norm import SyncBatchNorm
from syncnorm.norm.backends import cpu_aten as native
from syncnorm.norm.backends import fused
from syncnorm.norm.distributed.transport import transport_of

PEER = "nn.BatchNorm2d, local"
SHAPES = {"(8,64,56,56)": (8, 64, 56, 56), "(2,256,14,14)": (2, 256, 14, 14)}
LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
GOALS = {
    ("(8,64,56,56) NCHW", "ours, shared memory"): 0.75,
    ("(2,256,14,14) NCHW", "ours, shared memory"): 1.08,
}


def gloo_group() -> dist.ProcessGroup:
    """All workers, as a group whose statistics go over gloo."""
    os.environ["SYNCNORM_SHARED_MEMORY"] = "0"
    group = dist.new_group(list(range(dist.get_world_size())))
    transport_of(group)
    os.environ["SYNCNORM_SHARED_MEMORY"] = "1"
    return group


@contextmanager
def native_operators():  # type: ignore[no-untyped-def]
    """Within it PyTorch's operators compute, as where there is no C compiler."""
    chosen, fused.kernels_for = fused.kernels_for, lambda _: native
    try:
        yield
    finally:
        fused.kernels_for = chosen


def build(shape: tuple[int, ...], memory_format: torch.memory_format) -> Mapping[str, Callable[[], object]]:
    """One forward and backward of each layer."""
    x = torch.randn(shape).to(memory_format=memory_format).requires_grad_()
    dy = torch.randn(shape).to(memory_format=memory_format)
    C = shape[1]

    def step(layer: nn.Module, context: Callable[[], Any] = nullcontext) -> Callable[[], object]:
        def run() -> object:
            with context():
                return torch.autograd.grad(layer(x), [x, *layer.parameters()], dy)

        return run

    return {
        PEER: step(nn.BatchNorm2d(C)),
        "ours, shared memory": step(SyncBatchNorm(C)),
        "ours, gloo": step(SyncBatchNorm(C, process_group=gloo_group())),
        "ours, shared memory, no C kernels": step(SyncBatchNorm(C), native_operators),
        "Detectron2-style": step(Detectron2StyleSyncBatchNorm(C)),
    }


def run(rounds: int = 60) -> Table:
    settings = {f"{shape} {layout}": (SHAPES[shape], LAYOUTS[layout]) for shape in SHAPES for layout in LAYOUTS}
    return Table("norm_layer", PEER, compare(build, settings, PEER, goals=GOALS, rounds=rounds))
