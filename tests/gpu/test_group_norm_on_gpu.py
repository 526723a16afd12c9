"""Group normalization of channels_last tensors by Triton, on a CUDA device."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from syncnorm.norm.backends.by_sample import triton_rows
from syncnorm.norm.backends.by_sample.group_norm import group_norm
from tests.helpers.norm.splits import relative_error

FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}


@pytest.mark.parametrize("shape", [(2, 6, 5, 5), (1, 40, 40, 70), (3, 160, 7, 7), (2, 32, 20, 30, 40)])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("channels_a_group", [1, 2, None])
def test_output_and_gradients_are_those_of_torch_in_float64(
    shape: tuple[int, ...], dtype: torch.dtype, channels_a_group: int | None
) -> None:
    G, C = shape[1] // (channels_a_group or shape[1]), shape[1]
    x, dy = (torch.randn(shape, device="cuda", dtype=dtype).to(memory_format=FORMATS[len(shape)]) for _ in range(2))
    x.requires_grad_()
    weight, bias = (torch.randn(C, device="cuda", dtype=dtype).requires_grad_() for _ in range(2))
    exact = [tensor.detach().double().contiguous().requires_grad_() for tensor in (x, weight, bias)]

    assert triton_rows.takes(x)
    y = group_norm(x, G, weight, bias, 1e-5)
    found = (y, *torch.autograd.grad(y, (x, weight, bias), dy))

    y64 = F.group_norm(exact[0], G, exact[1], exact[2], 1e-5)
    for actual, expected in zip(found, (y64, *torch.autograd.grad(y64, exact, dy.double())), strict=True):
        assert relative_error(actual.detach(), expected.detach()) < TOLERANCE[dtype]
    assert y.stride() == found[1].stride() == x.stride()


def test_autocast_computes_in_float32() -> None:
    x = torch.randn(2, 8, 5, 5, device="cuda", dtype=torch.bfloat16).to(memory_format=torch.channels_last)

    with torch.autocast("cuda", torch.bfloat16):
        assert group_norm(x, 2, None, None, 1e-5).dtype == torch.float32
