"""What norm.tiled keeps on the device. Storages are counted: here the CPU plays the device, so that those that wait are
emptied as on a GPU."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from syncnorm import norm
from tests.helpers.norm.unet import UNet


@pytest.fixture
def cpu_is_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("syncnorm.norm.tiling.waiting_tensors.is_on_device", lambda _: True)


def peak_of(model: nn.Module, run: Callable[[], Tensor]) -> tuple[int, Tensor]:
    """The most bytes that inputs and outputs of modules hold together, and what `run` gives."""
    noted: list[weakref.ref[Tensor]] = []
    peak = 0

    def note(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal peak
        with (
            torch._C.DisableTorchFunction()
        ):  # not seen by the tile that runs, which would bring back what is looked at
            noted.extend(map(weakref.ref, (*args, output)))
            alive = [tensor for ref in noted if (tensor := ref()) is not None]
            storages = [tensor.untyped_storage() for tensor in alive]
            held = {storage.data_ptr(): storage.nbytes() for storage in storages if storage.nbytes()}
            noted[:] = {id(tensor): weakref.ref(tensor) for tensor in alive}.values()
            peak = max(peak, sum(held.values()))

    handles = [part.register_forward_hook(note) for part in model.modules() if not list(part.children())]
    result = run()
    for handle in handles:
        handle.remove()
    return peak, result


@pytest.mark.parametrize("kind", ["group", "filter_response"])
def test_the_device_holds_one_tile_at_a_time(kind: str, cpu_is_a_device: None) -> None:
    model, _ = norm.convert(UNet(2, width=8), kind)
    model.eval()
    x = torch.randn(1, 2, 128, 128)
    with torch.no_grad():
        of_whole, whole = peak_of(model, lambda: model(x))

    of_tiles, y = peak_of(model, lambda: norm.tiled(model, x, tile=32))

    torch.testing.assert_close(y, whole, rtol=0, atol=1e-5)
    tile = (32 + 2 * 12) ** 2 / 128**2
    assert of_tiles < 2 * tile * of_whole


def test_without_a_device_tensors_stay_where_they_are() -> None:
    model, _ = norm.convert(UNet(2, width=8), "group")
    model.eval()
    x = torch.randn(1, 2, 64, 64)
    stored: list[object] = []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("syncnorm.norm.tiling.waiting_tensors._Stored", lambda *args: stored.append(args))
        norm.tiled(model, x, tile=16)

    assert not stored


class Grid(nn.Module):
    """Keeps a tensor that the first tile has made, which all others use."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.GroupNorm(2, 4), nn.GroupNorm(2, 4)
        self.scale: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.scale is None:
            self.scale = torch.linspace(1, 2, 4).view(1, 4, 1, 1)
        return self.second(self.first(x) * self.scale) * self.scale


def test_what_a_module_keeps_for_all_tiles_is_there_for_each(cpu_is_a_device: None) -> None:
    model, x = Grid().eval(), torch.randn(1, 4, 32, 32)
    with torch.no_grad():
        whole = model(x)
    model.scale = None

    y = norm.tiled(model, x, tile=8)

    torch.testing.assert_close(y, whole, rtol=0, atol=1e-5)
    torch.testing.assert_close(model(x).detach(), whole, rtol=0, atol=0)


def test_tiles_wait_under_inference_mode_too(cpu_is_a_device: None) -> None:
    """Lightning validates under it, and its tensors know no versions."""
    model, _ = norm.convert(UNet(2), "instance")
    model.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    norm.save_memory(model)
    x = torch.randn(1, 2, 64, 48).to(memory_format=torch.channels_last)

    with torch.inference_mode():
        whole, y = model(x), norm.tiled(model, x, tile=16)

    torch.testing.assert_close(y, whole, rtol=0, atol=1e-5)  # fp32
