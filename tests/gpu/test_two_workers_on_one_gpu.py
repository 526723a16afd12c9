"""Two workers that share one GPU and exchange by gloo: the batch of both, split in any way, is normalized as one."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from syncnorm.norm import SyncBatchNorm
from syncnorm.norm.backends import cuda_aten as cuda_native
from syncnorm.norm.backends import cuda_triton as cuda
from syncnorm.norm.backends import fused

KERNELS = {"triton": (cuda,), "native": (cuda_native,), "reference": ()}
CASES = [
    (("triton", "triton"), (4, 4)),
    (("triton", "triton"), (3, 5)),
    (("triton", "triton"), (8, 0)),
    (("native", "native"), (0, 8)),
    (("triton", "native"), (5, 3)),
    (("reference", "reference"), (3, 5)),
]
NAMES = ("y", "dx", "weight", "bias", "running_mean", "running_var")


def _worker(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    for number, (kernels, split) in enumerate(CASES):
        fused._KERNELS["cuda"] = KERNELS[kernels[rank]]
        x, dy = (torch.split(whole, split)[rank].cuda().requires_grad_() for whole in _batch())
        layer = SyncBatchNorm(6, device="cuda", dtype=torch.float64)
        y = layer(x)
        y.backward(dy)
        values = (y, x.grad, layer.weight.grad, layer.bias.grad, layer.running_mean, layer.running_var)
        torch.save([value.detach().cpu() for value in values], f"{folder}/{number}-{rank}.pt")
    dist.destroy_process_group()


def _batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(3)
    return torch.randn(8, 6, 5, 7, dtype=torch.float64) + 2, torch.randn(8, 6, 5, 7, dtype=torch.float64)


@pytest.fixture(scope="module")
def results() -> list[list[dict[str, Tensor]]]:
    """By case and rank."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_worker, (folder,), 2)
        files = [[Path(folder) / f"{number}-{rank}.pt" for rank in (0, 1)] for number in range(len(CASES))]
        return [[dict(zip(NAMES, torch.load(file), strict=True)) for file in pair] for pair in files]


@pytest.mark.parametrize("case", range(len(CASES)), ids=[f"{kernels}-{split}" for kernels, split in CASES])
def test_equals_one_device(results: list[list[dict[str, Tensor]]], case: int) -> None:
    x, dy = _batch()
    reference = nn.BatchNorm2d(6, dtype=torch.float64)
    x.requires_grad_()
    reference(x).backward(dy)

    both = results[case]

    close = {"rtol": 1e-11, "atol": 1e-11}  # float64; sums in another order
    torch.testing.assert_close(torch.cat([one["y"] for one in both]), reference(x.detach()), **close)
    torch.testing.assert_close(torch.cat([one["dx"] for one in both]), x.grad, **close)
    torch.testing.assert_close(both[0]["weight"] + both[1]["weight"], reference.weight.grad, **close)
    torch.testing.assert_close(both[0]["bias"] + both[1]["bias"], reference.bias.grad, **close)
    for one in both:
        expected = 0.1 * x.detach().mean((0, 2, 3)), 0.9 + 0.1 * x.detach().var((0, 2, 3))
        torch.testing.assert_close(one["running_mean"], expected[0], **close)
        torch.testing.assert_close(one["running_var"], expected[1], **close)
