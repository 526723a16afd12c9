from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from syncnorm import norm
from syncnorm.norm.accumulation import activation_memory
from tests.helpers.norm.accumulation import NETWORKS, network
from tests.helpers.norm.splits import relative_error

MICRO_BATCHES = 4


class _Meter:
    """Bytes of tensors that are alive."""

    def __init__(self) -> None:
        self.now = self.peak = 0

    def hold(self, tensor: Tensor) -> Tensor:
        size = tensor.numel() * tensor.element_size()
        self._add(size)
        weakref.finalize(tensor, self._add, -size)
        return tensor

    def _add(self, size: int) -> None:
        self.now += size
        self.peak = max(self.peak, self.now)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> _Meter:
    """Lets every tensor of the CPU count as one on a device, and measures what is saved there for backward."""
    meter = _Meter()
    pack, to_device = activation_memory._HostMemory._pack, activation_memory.to_device

    def packed(self: Any, tensor: Tensor) -> Any:
        found = pack(self, tensor)
        is_left = found is tensor and tensor.untyped_storage().data_ptr() not in self._staying
        return meter.hold(tensor) if is_left else found

    monkeypatch.setattr(activation_memory, "is_on_device", lambda _: True)
    monkeypatch.setattr(activation_memory._HostMemory, "_pack", packed)
    monkeypatch.setattr(activation_memory, "to_device", lambda *args: meter.hold(to_device(*args)))
    return meter


def _saved_bytes(model: nn.Module, x: Tensor, y: Tensor) -> int:
    """What a plain forward saves for backward, each storage once, without parameters and buffers."""
    staying = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    sizes: dict[int, int] = {}
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in staying:
            kept.append(tensor)
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = cross_entropy(model(x), y)
    del loss
    return sum(sizes.values())


def _data(name: str) -> tuple[Tensor, Tensor]:
    x = torch.randn(2 * MICRO_BATCHES, 3, 32, 32, dtype=torch.float64)
    return x, torch.randint(10, (len(x), *((32, 32) if name == "unet" else ())))


def _gradients(model: nn.Module, x: Tensor, y: Tensor, memory: Any) -> dict[str, Tensor]:
    model.zero_grad()
    norm.accumulated(model, cross_entropy, list(zip(x.split(2), y.split(2), strict=True)), memory=memory).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["sync_batch", "batch", "batch_renorm", "ghost_batch"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_device_holds_no_more_than_one_micro_batch_saves(name: str, kind: str, device: _Meter) -> None:
    model = network(name, kind, torch.float64)
    x, y = _data(name)
    of_one = _saved_bytes(model, x[:2], y[:2])
    in_place = _gradients(model, x, y, "device")

    moved = _gradients(model, x, y, "host")

    assert 0 < device.peak <= 1.3 * of_one
    assert device.now == 0
    for gradient_name, value in in_place.items():
        assert relative_error(moved[gradient_name], value) < 1e-12, gradient_name


def test_a_tensor_that_several_operations_save_is_copied_once(monkeypatch: pytest.MonkeyPatch) -> None:
    copies: list[Tensor] = []
    monkeypatch.setattr(activation_memory, "is_on_device", lambda _: True)
    to_host = activation_memory.to_host
    monkeypatch.setattr(activation_memory, "to_host", lambda tensor: copies.append(tensor.sum()) or to_host(tensor))
    x = torch.randn(64, 64)

    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    norm.accumulated(model, lambda out, _: out.sin().mean(), [(x, None), (x + 1, None)]).backward()

    # Of each: the input, the output of ReLU that both it and the layer behind save, and that of the last layer.
    assert len(copies) == 2 * 3


@pytest.mark.parametrize("name", NETWORKS)
def test_recomputing_blocks_saves_less_and_gives_the_same_gradients(name: str) -> None:
    model = network(name, "sync_batch", torch.float64)
    x, y = _data(name)
    saved = {}
    expected = _gradients(model, x, y, "device")

    for memory in ("device", "recompute"):
        meter = _Meter()
        with torch.autograd.graph.saved_tensors_hooks(meter.hold, lambda tensor: tensor):
            loss = norm.accumulated(model, cross_entropy, [(x[:4], y[:4]), (x[4:], y[4:])], memory=memory)  # type: ignore[arg-type]
        saved[memory] = meter.now
        del loss

    assert saved["recompute"] < 0.5 * saved["device"]
    for gradient_name, value in _gradients(model, x, y, "recompute").items():
        assert relative_error(value, expected[gradient_name]) < 1e-12, gradient_name


def test_recomputing_a_flat_model_is_refused() -> None:
    model, x = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), torch.randn(4, 3)

    with pytest.raises(ValueError, match=r"none besides itself \(Sequential\). Put its layers into blocks"):
        norm.accumulated(model, cross_entropy, [(x, x)], memory="recompute")


def test_an_unknown_memory_is_refused() -> None:
    with pytest.raises(ValueError, match="memory must be one of host, device, recompute, got 'disk'"):
        norm.accumulated(nn.Linear(3, 3), cross_entropy, [(torch.ones(1, 3), None)], memory="disk")  # type: ignore[arg-type]
