"""The compiled kernels and PyTorch's operators, each against float64 formulas written out."""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from syncnorm.norm import SyncBatchNorm
from syncnorm.norm.backends import cpu_aten as native
from syncnorm.norm.backends import cpu_compiled as compiled
from syncnorm.norm.backends import fused
from syncnorm.norm.backends.interface import Request
from syncnorm.norm.native import build as kernels
from syncnorm.norm.statistics.moments import of_row
from tests.helpers.norm.splits import relative_error

pytestmark = pytest.mark.skipif(kernels.library() is None, reason="no C compiler")

# Lengths around the kernels' blocks: 1, less than a vector, a block and a bit; channels below, at and above a strip.
SHAPES = [(5, 3), (300, 65), (2, 3, 7), (3, 64, 1), (2, 5, 33, 32), (1, 130, 3, 3), (2, 3, 3, 4, 5), (0, 4, 3, 3)]
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
CASES = [
    (shape, by_rows)
    for shape, by_rows in itertools.product(SHAPES, (False, True))
    if not by_rows or len(shape) in FORMATS
]
TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-6, torch.bfloat16: 4e-3}


def _tensor(shape: tuple[int, ...], by_rows: bool, dtype: torch.dtype) -> Tensor:
    x = (torch.randn(shape, dtype=torch.float64) * 3 + 2).to(dtype)
    return x.to(memory_format=FORMATS[len(shape)]) if by_rows else x


def _expected(x: Tensor, dy: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    """Output and gradients by the formulas of norm.SyncBatchNorm, in float64."""
    x, dy, weight, bias = (t.double() for t in (x, dy, weight, bias))
    dims = [0, *range(2, x.dim())]
    n = max(x.numel() // x.shape[1], 1)
    column = (1, -1, *[1] * (x.dim() - 2))
    mean = x.sum(dims) / n
    invstd = ((x - mean.view(column)).square().sum(dims) / n + 1e-5).rsqrt()
    normalized = (x - mean.view(column)) * invstd.view(column)
    by_bias, by_weight = dy.sum(dims), (dy * normalized).sum(dims)
    inner = dy - by_bias.view(column) / n - normalized * by_weight.view(column) / n
    y = normalized * weight.view(column) + bias.view(column)
    return y, (weight * invstd).view(column) * inner, by_weight, by_bias


@pytest.mark.parametrize(("shape", "by_rows"), CASES)
@pytest.mark.parametrize(
    ("module", "dtype"),
    [(compiled, dtype) for dtype in TOLERANCE] + [(native, torch.float32), (native, torch.float64)],
)
def test_output_and_gradients(module: ModuleType, dtype: torch.dtype, shape: tuple[int, ...], by_rows: bool) -> None:
    x, dy = _tensor(shape, by_rows, dtype), _tensor(shape, by_rows, dtype)
    weight, bias = (torch.randn(shape[1], dtype=torch.promote_types(dtype, torch.float32)) for _ in range(2))

    row = module.measure(x)
    y, merged = module.finish_forward(x, row.unsqueeze(0), Request(weight, bias, 1e-5, None, None, None, None))
    sums = module.gradient_sums(x, dy, merged)
    found = (y, *module.finish_backward(x, dy, merged, sums, sums.unsqueeze(0), 1e-5, weight))

    # PyTorch's operators add channels_last rows one after the other in float32.
    tolerance = TOLERANCE[dtype] * (10 if module is native else 1)
    for actual, expected in zip(found, _expected(x, dy, weight, bias), strict=True):
        assert relative_error(actual, expected) < tolerance
    assert y.stride() == x.stride() or x.numel() == 0


@pytest.mark.parametrize(("shape", "by_rows"), [((8, 16, 14, 14), False), ((8, 16, 14, 14), True), ((4000, 16), False)])
@pytest.mark.parametrize("module", [compiled, native])
@pytest.mark.parametrize("ratio", [1e2, 1e4, 1e5])
def test_variance_at_a_large_mean(module: ModuleType, ratio: float, shape: tuple[int, ...], by_rows: bool) -> None:
    x = _tensor(shape, by_rows, torch.float32) / 3 + ratio
    exact = x.double().var([0, *range(2, x.dim())], correction=0)

    moments = of_row(module.measure(x))

    assert relative_error(moments.biased_variance, exact) < 1e-5


def test_outlier_at_the_front_costs_no_accuracy() -> None:
    x = torch.randn(4, 3, 40, 40)
    x[0, :, 0, 0] = 1e6  # a shift by the first value would leave nothing of the others

    moments = of_row(compiled.measure(x))

    assert relative_error(moments.mean, x.double().mean((0, 2, 3))) < 1e-6
    assert relative_error(moments.biased_variance, x.double().var((0, 2, 3), correction=0)) < 1e-5


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("module", [compiled, native])
@pytest.mark.parametrize("by_rows", [False, True])
def test_value_that_is_not_finite_shows_in_its_channel_only(module: ModuleType, value: float, by_rows: bool) -> None:
    x = _tensor((4, 6, 5, 5), by_rows, torch.float32)
    x[2, 1, 3, 3] = value

    m2 = of_row(module.measure(x)).m2

    assert (~torch.isfinite(m2)).tolist() == [False, True, False, False, False, False]


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("by_rows", [False, True])
def test_threads_change_nothing(by_rows: bool) -> None:
    x, dy = (_tensor((4, 130, 6, 6), by_rows, torch.float64) for _ in range(2))
    plain, ours = nn.BatchNorm2d(130, dtype=torch.float64), SyncBatchNorm(130, dtype=torch.float64)

    for layer in (plain, ours):
        layer.input = x.clone().requires_grad_()
        layer(layer.input).backward(dy)

    assert relative_error(ours.input.grad, plain.input.grad) < 1e-12
    assert relative_error(ours.running_var, plain.running_var) < 1e-12


def test_in_place_change_of_running_statistics_is_seen_by_autograd() -> None:
    layer = SyncBatchNorm(3)
    x = torch.randn(4, 3, requires_grad=True)
    y = layer.eval()(x)
    layer.train()(x)

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.fixture
def anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An empty cache of compiled kernels."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kernels.library.cache_clear()
    yield tmp_path / "syncnorm"
    kernels.library.cache_clear()


def test_kernels_are_compiled_once_into_a_private_folder(anew: Path) -> None:
    assert kernels.library() is not None

    (compiled_file,) = anew.iterdir()
    made_at = compiled_file.stat().st_mtime_ns
    kernels.library.cache_clear()
    assert kernels.library() is not None
    assert [path.stat().st_mtime_ns for path in anew.iterdir()] == [made_at]
    assert stat.S_IMODE(anew.stat().st_mode) & 0o022 == 0


@pytest.mark.parametrize("setting", [{"SYNCNORM_KERNELS": "0"}, {"CC": "/nonexistent/cc"}, {"CC": "false"}])
def test_without_a_compiler_pytorch_does_the_work(
    anew: Path, monkeypatch: pytest.MonkeyPatch, setting: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in setting.items():
        monkeypatch.setenv(name, value)
    x = torch.randn(4, 3, 5)

    y = SyncBatchNorm(3)(x)

    assert fused.kernels_for(x) is native
    torch.testing.assert_close(y, nn.BatchNorm1d(3)(x))
    assert ("CC" in setting) == ("normalization runs without compiled kernels" in caplog.text)


def test_folder_that_others_can_write_is_not_trusted(anew: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(anew.parent))
    for name in ("syncnorm", f"syncnorm-{os.getuid()}"):
        (anew.parent / name).mkdir()
        (anew.parent / name).chmod(0o777)

    assert kernels.library() is None
