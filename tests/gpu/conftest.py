from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from syncnorm.norm.backends import cuda_aten as cuda_native
from syncnorm.norm.backends import cuda_triton as cuda
from syncnorm.norm.backends import fused
from syncnorm.norm.backends.dispatch import use_backend


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.gpu)
            item.add_marker(pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"))


@pytest.fixture
def nccl(tmp_path: Path) -> Iterator[None]:
    """A process group of one: on NCCL, and on gloo for what lies on the CPU."""
    dist.init_process_group(
        "cpu:gloo,cuda:nccl",
        init_method=f"file://{tmp_path}/store",
        rank=0,
        world_size=1,
        device_id=torch.device("cuda", 0),
    )
    yield
    dist.destroy_process_group()


@pytest.fixture
def exchanging(nccl: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the one worker exchange through NCCL as several would."""
    monkeypatch.setattr("syncnorm.norm.distributed.collectives.world_size", lambda _: 2)


@pytest.fixture(params=["triton", "native", "reference"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Every way the same numbers can come about on a GPU."""
    chosen = {"triton": (cuda,), "native": (cuda_native,), "reference": ()}[request.param]
    monkeypatch.setitem(fused._KERNELS, "cuda", chosen)
    with use_backend("reference" if request.param == "reference" else "fused"):
        yield request.param
