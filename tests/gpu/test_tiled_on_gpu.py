"""norm.tiled on a CUDA device: tiles equal the volume, which may lie in host memory, and hold less of the device's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from syncnorm import norm
from syncnorm.trainer.training.tasks.joint_windows import JointWindows
from syncnorm.trainer.training.tasks.receptive_field import receptive_field
from tests.helpers.norm.unet import UNet


def _peak_of(run: Callable[[], Tensor]) -> tuple[int, Tensor]:
    """Bytes of the device's memory that `run` adds, at most."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before, result


@pytest.mark.parametrize("kind", ["group", "instance", "filter_response", "evo_s0", "batch"])
def test_tiles_equal_the_volume_at_less_memory(kind: str) -> None:
    model, _ = norm.convert(UNet(3, width=16), kind)
    model.eval().cuda()
    x = torch.randn(1, 2, 96, 96, 96) + torch.linspace(-2, 2, 96)

    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        of_whole, whole = _peak_of(lambda: model(x.cuda()).cpu())
        of_tiles, y = _peak_of(lambda: norm.tiled(model, x, tile=32))

    assert y.device.type == "cpu"
    torch.testing.assert_close(y, whole, rtol=0, atol=1e-5)  # fp32
    assert of_tiles < 0.6 * of_whole


def test_joint_windows_run_tiles() -> None:
    model, _ = norm.convert(UNet(3), "group")
    model.eval().cuda()
    windows = JointWindows((32, 32, 32), receptive_field(model, (2, 32, 32, 32)))
    x = torch.randn(1, 2, 70, 54, 90, device="cuda")

    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        y, whole = windows(x, model), model(torch.nn.functional.pad(x, (0, 2) * 3))

    torch.testing.assert_close(y, whole[:, :, :70, :54, :90], rtol=0, atol=1e-5)  # fp32
