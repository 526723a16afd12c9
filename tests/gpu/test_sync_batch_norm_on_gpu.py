"""SyncBatchNorm on a CUDA device, with every kind of kernels: what the CPU tests show, and no waiting for the host."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from syncnorm.norm import SyncBatchNorm
from syncnorm.norm.backends import cuda_triton as cuda
from syncnorm.norm.distributed.collectives import gather_rows

SHAPES = [
    (8, 16, 9, 9),  # positions that no power of two divides
    (32, 3, 64, 64),  # few channels: many programs share one
    (2, 300, 4, 4),
    (5, 1, 1, 1),
    (64, 130),
    (4, 7, 50),
    (2, 4, 9, 10, 11),
    (3, 2, 300, 301),
]
# float64: sums in another order. float32: rounding of a result. bfloat16: to 8 bits; statistics are float32.
PRECISIONS = [(torch.float64, 1e-10), (torch.float32, 1e-5), (torch.float16, 4e-3), (torch.bfloat16, 2e-2)]
PLAIN = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def _step(layer: nn.Module, x: Tensor, dy: Tensor) -> dict[str, Tensor]:
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = layer(x)
    y.backward(dy.to(y.dtype))
    assert x.grad is not None
    gradients = {f"grad.{name}": parameter.grad for name, parameter in layer.named_parameters()}
    buffers = {name: buffer for name, buffer in layer.state_dict().items() if "running" in name}
    return {"y": y.detach(), "dx": x.grad} | gradients | buffers


def _assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        # Where a gradient is zero by symmetry, rounding is measured against one.
        atol = tolerance * max(float(wanted.abs().max()), 1.0)
        torch.testing.assert_close(
            found[name].double(), wanted, rtol=tolerance, atol=atol, msg=lambda m, n=name: f"{n}: {m}"
        )


def _filled(layer: nn.Module, like: nn.Module | None = None) -> nn.Module:
    for name, parameter in layer.named_parameters():
        parameter.data.copy_(nn.init.normal_(parameter) if like is None else like.get_parameter(name))
    return layer


@pytest.mark.usefixtures("nccl", "kernels")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("channels_last", [False, True])
def test_equals_batch_norm_in_float64(
    shape: tuple[int, ...], dtype: torch.dtype, tolerance: float, channels_last: bool
) -> None:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    if channels_last and len(shape) not in formats:
        pytest.skip("has no such format")
    kept = formats[len(shape)] if channels_last else torch.contiguous_format
    x = (torch.randn(shape, device="cuda", dtype=torch.float64) * 2 + 1).to(dtype).to(memory_format=kept)
    dy = torch.randn_like(x)
    reference = _filled(PLAIN[len(shape)](shape[1], device="cuda", dtype=torch.float64))
    layer = _filled(SyncBatchNorm(shape[1], device="cuda", dtype=torch.promote_types(dtype, torch.float32)), reference)

    found = _step(layer, x, dy)

    assert found["y"].dtype == dtype
    assert found["y"].is_contiguous(memory_format=kept)
    _assert_close(found, _step(reference, x.double(), dy.double()), tolerance)


@pytest.mark.usefixtures("exchanging", "kernels")
def test_exchanged_through_nccl_it_is_the_same() -> None:
    x = torch.randn(6, 5, 7, 7, device="cuda")
    dy = torch.randn_like(x)

    found = _step(SyncBatchNorm(5, device="cuda"), x, dy)

    expected = _step(nn.BatchNorm2d(5, device="cuda", dtype=torch.float64), x.double(), dy.double())
    _assert_close(found, expected, 1e-5)  # rounding of float32


@pytest.mark.usefixtures("nccl", "kernels")
@pytest.mark.parametrize("arguments", [{"momentum": None}, {"affine": False}, {"bias": False}, {"eps": 0.5}], ids=str)
def test_arguments(arguments: dict[str, object]) -> None:
    reference = nn.BatchNorm2d(
        6, device="cuda", dtype=torch.float64, **{k: v for k, v in arguments.items() if k != "bias"}
    )
    layer = SyncBatchNorm(6, device="cuda", dtype=torch.float64, **arguments)

    for batch in torch.randn(3, 4, 6, 5, 5, device="cuda", dtype=torch.float64):
        found, expected = layer(batch), reference(batch)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)  # sums in another order

    for name in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(getattr(layer, name), getattr(reference, name), rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("nccl", "kernels")
@pytest.mark.parametrize("channels_last", [False, True])
def test_variance_beside_a_large_mean(channels_last: bool) -> None:
    x = (torch.randn(16, 8, 40, 40, device="cuda", dtype=torch.float64) + 1e4).float()
    x = x.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    layer = SyncBatchNorm(8, momentum=1.0, device="cuda")

    layer(x)

    expected = x.double().var((0, 2, 3))
    # The specification's bound for float32 at mean / std = 1e4.
    assert float(((layer.running_var - expected) / expected).abs().max()) < 1e-4


@pytest.mark.usefixtures("nccl", "kernels")
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_non_finite_batch_leaves_the_statistics_alone(poison: float) -> None:
    layer, x = SyncBatchNorm(40, device="cuda"), torch.randn(4, 40, 8, 8, device="cuda")
    layer(x)
    before = {name: buffer.clone() for name, buffer in layer.state_dict().items()}
    x[1, 3, 2, 2] = poison

    y = layer(x)

    assert not y[:, 3].isfinite().all()
    assert y[:, 4].isfinite().all()
    assert all(torch.equal(before[name], buffer) for name, buffer in layer.state_dict().items())
    assert int(layer.num_non_finite_batches) == 1


@pytest.mark.usefixtures("nccl", "kernels")
def test_empty_batch() -> None:
    layer, x = SyncBatchNorm(4, device="cuda"), torch.empty(0, 4, 3, 3, device="cuda", requires_grad=True)

    y = layer(x)
    y.sum().backward()

    assert y.shape == x.shape == x.grad.shape
    assert int(layer.num_batches_tracked) == 0
    assert torch.equal(layer.weight.grad, torch.zeros(4, device="cuda"))


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.usefixtures("nccl")
@pytest.mark.parametrize("exchanges", [False, True])
def test_host_waits_for_nothing_in_forward_and_backward(
    exchanges: bool, kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if exchanges:
        monkeypatch.setattr("syncnorm.norm.distributed.collectives.world_size", lambda _: 2)
    layer, x = SyncBatchNorm(16, device="cuda"), torch.randn(8, 16, 9, 9, device="cuda", requires_grad=True)
    layer(x).sum().backward()

    try:
        torch.cuda.set_sync_debug_mode("error")
        layer(x).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.usefixtures("nccl", "kernels")
def test_step_can_be_captured_in_a_graph() -> None:
    layer, x = SyncBatchNorm(8, device="cuda"), torch.randn(4, 8, 6, 6, device="cuda")
    expected, stream = nn.BatchNorm2d(8, device="cuda"), torch.cuda.Stream()
    with torch.cuda.stream(stream):
        layer(x)
    torch.cuda.synchronize()
    layer.reset_running_stats()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = layer(x)

    for _ in range(3):
        x.copy_(torch.randn_like(x))
        graph.replay()
        wanted = expected(x)

    torch.testing.assert_close(y, wanted, rtol=1e-5, atol=1e-5)  # rounding of float32
    torch.testing.assert_close(layer.running_var, expected.running_var, rtol=1e-5, atol=1e-5)
    assert int(layer.num_batches_tracked) == 3


@pytest.mark.usefixtures("nccl")
def test_autocast_normalizes_half_precision_with_float32_parameters() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, device="cuda"), SyncBatchNorm(8, device="cuda"))
    seen = []
    net[1].register_forward_hook(lambda _, inputs, y: seen.append((inputs[0].dtype, y.dtype)))

    with torch.autocast("cuda", torch.bfloat16):
        net(torch.randn(4, 3, 8, 8, device="cuda")).square().mean().backward()

    assert seen == [(torch.bfloat16, torch.bfloat16)]
    assert net[1].weight.grad.dtype == torch.float32


@pytest.mark.usefixtures("nccl", "kernels")
def test_first_and_second_derivative() -> None:
    x = torch.randn(3, 2, 4, device="cuda", dtype=torch.float64, requires_grad=True)
    layer = SyncBatchNorm(2, device="cuda", dtype=torch.float64)

    assert torch.autograd.gradcheck(layer, x)
    assert torch.autograd.gradgradcheck(layer, x)


@pytest.mark.usefixtures("exchanging")
def test_compiles_without_a_graph_break() -> None:
    layer, x = SyncBatchNorm(16, device="cuda"), torch.randn(8, 16, 9, 9, device="cuda")
    dy = torch.randn_like(x)
    compiled = torch.compile(layer, fullgraph=True)
    x.requires_grad_()

    y = compiled(x)
    y.backward(dy)

    wanted = _step(nn.BatchNorm2d(16, device="cuda", dtype=torch.float64), x.double(), dy.double())
    torch.testing.assert_close(y.double(), wanted["y"], rtol=1e-5, atol=1e-5)  # rounding of float32
    torch.testing.assert_close(x.grad.double(), wanted["dx"], rtol=1e-5, atol=1e-5)


def test_triton_is_what_runs_by_default() -> None:
    assert cuda.takes(torch.zeros(2, 2, device="cuda"))


@pytest.mark.usefixtures("exchanging")
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_rows_travel_from_where_they_lie(device: str) -> None:
    row = torch.arange(5, dtype=torch.float64, device=device)

    found = gather_rows(row, None)

    assert found.device == row.device
    assert torch.equal(found, row.unsqueeze(0))


@pytest.mark.usefixtures("nccl", "kernels")
def test_parameters_and_buffers_may_be_parts_of_larger_ones() -> None:
    x = torch.randn(6, 5, 7, 7, device="cuda")
    layer, plain = SyncBatchNorm(5, device="cuda"), nn.BatchNorm2d(5, device="cuda")
    plain.weight = layer.weight = nn.Parameter(torch.randn(10, device="cuda")[::2])
    layer.running_var = torch.ones(10, device="cuda")[::2]

    y = layer(x)

    torch.testing.assert_close(y, plain(x), rtol=1e-5, atol=1e-5)  # rounding of float32
    torch.testing.assert_close(layer.running_var, plain.running_var, rtol=1e-5, atol=1e-5)
