"""SyncBatchNorm on a CUDA device: what the CPU tests show, and that nothing waits for the host."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from norm import SyncBatchNorm

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.fixture
def nccl(tmp_path: Path) -> Iterator[None]:
    """A process group of one on NCCL."""
    dist.init_process_group("nccl", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def _step(layer: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = layer(x)
    y.square().mul(torch.linspace(0, 1, y.shape[-1], device=x.device)).sum().backward()
    return [y.detach(), x.grad, *(parameter.grad for parameter in layer.parameters()), *layer.buffers()][:6]


@pytest.mark.usefixtures("nccl")
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
# bf16: the output is rounded to 8 bits; statistics are float32.
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)]
)
def test_equals_batch_norm_in_float64(dtype: torch.dtype, tolerance: float, memory_format: torch.memory_format) -> None:
    x = torch.randn(8, 16, 9, 9, device="cuda", dtype=dtype).to(memory_format=memory_format)
    wide = torch.promote_types(dtype, torch.float32)

    found = _step(SyncBatchNorm(16, device="cuda", dtype=wide), x)

    expected = _step(nn.BatchNorm2d(16, device="cuda", dtype=torch.float64), x.double())
    assert found[0].dtype == dtype
    for actual, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(actual.double(), wanted, rtol=tolerance, atol=tolerance * float(wanted.abs().max()))


@pytest.mark.usefixtures("nccl")
def test_host_waits_for_nothing_in_forward_and_backward() -> None:
    layer, x = SyncBatchNorm(16, device="cuda"), torch.randn(8, 16, 9, 9, device="cuda", requires_grad=True)
    layer(x).sum().backward()

    torch.cuda.set_sync_debug_mode("error")
    try:
        layer(x).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_first_and_second_derivative() -> None:
    x = torch.randn(3, 2, 4, device="cuda", dtype=torch.float64, requires_grad=True)
    layer = SyncBatchNorm(2, device="cuda", dtype=torch.float64)

    assert torch.autograd.gradcheck(layer, x)
    assert torch.autograd.gradgradcheck(layer, x)
