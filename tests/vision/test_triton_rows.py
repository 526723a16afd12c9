"""The GPU's kernels for channels_last samples, as far as a machine without a GPU can tell."""

from __future__ import annotations

import os
import subprocess
import sys
from types import MappingProxyType
from typing import Any

import pytest

from tests.helpers.paths import ROOT

triton = pytest.importorskip("triton")

INTERPRETED = """
import torch
import torch.nn.functional as F
from syncnorm.norm.backends.by_sample import triton_rows

torch.manual_seed(0)
formats = {4: torch.channels_last, 5: torch.channels_last_3d}
for shape in [(2, 6, 5, 5), (1, 40, 33, 34), (2, 160, 3, 2, 3)]:
    for dtype, tolerance in [(torch.float64, 1e-12), (torch.float32, 2e-6), (torch.bfloat16, 1e-2)]:
        C = shape[1]
        x = (torch.randn(shape).double() * 3 + 20).to(dtype).to(memory_format=formats[len(shape)])
        dy = torch.randn_like(x)
        affine = [torch.randn(C, dtype=torch.promote_types(dtype, torch.float32)) for _ in range(2)]
        for G, (weight, bias) in ((1, affine), (2, affine), (C, (None, None))):
            y, statistics = triton_rows.forward.__wrapped__(x, G, weight, bias, 1e-5)
            found = (y, *triton_rows.backward.__wrapped__(x, dy, statistics, weight))
            weight, bias = (t if w is None else w for w, t in ((weight, torch.ones(C)), (bias, torch.zeros(C))))
            exact = [t.double().contiguous().requires_grad_() for t in (x, weight, bias)]
            y64 = F.group_norm(exact[0], G, *exact[1:], 1e-5)
            for mine, its in zip(found, (y64, *torch.autograd.grad(y64, exact, dy.double())), strict=True):
                error = (mine.double() - its.detach()).abs().max() / its.detach().abs().max()
                assert error < tolerance, (shape, dtype, G, float(error))
            assert y.stride() == found[1].stride() == x.stride()
"""


def test_interpreted_kernels_give_the_numbers_of_torch_in_float64() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}

    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED], env=environment, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr[-2000:]


NUMBER, F, D = "i32", "*fp32", "*fp64"
TILES = MappingProxyType({"BA": 64, "BB": 32, "ACC": "fp32"})
MERGES = MappingProxyType({"BP": 512})
ALONE = MappingProxyType({"weight": None, "bias": None, "S": 1, "size": 1})
# The types of a kernel's arguments, X for the element's, and its constants. Triton makes a constant of None and of 1.
KERNELS = {
    "row_statistics": (["X", D, NUMBER, NUMBER], {"ROWS": 1024, **TILES}),
    "group_statistics": ([D, D, F, F, F, NUMBER, NUMBER, NUMBER, NUMBER, "fp32", "fp32"], {"ROWS": 1024, **MERGES}),
    "normalize_rows": (["X", "X", F, NUMBER, NUMBER], TILES),
    "row_gradient_sums": (["X", "X", D, D, NUMBER, NUMBER, NUMBER], {"ROWS": 1024, **TILES}),
    "group_gradients": ([D, D, F, F, NUMBER, NUMBER, NUMBER], MERGES),
    "differentiate_rows": (["X", "X", "X", F, NUMBER, NUMBER], TILES),
}


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("element", ["fp32", "bf16", "fp16"])
def test_kernels_compile_for_a_gpu(name: str, element: str) -> None:
    assert b"ELF" in _compiled(name, element, {})[:4]


@pytest.mark.parametrize("name", ["group_statistics", "group_gradients"])
def test_kernels_compile_without_weights_and_for_one_channel_a_group(name: str) -> None:
    assert b"ELF" in _compiled(name, "fp32", ALONE)[:4]


def _compiled(name: str, element: str, special: Any) -> bytes:
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from syncnorm.norm.backends.by_sample import sample_triton_kernels

    kernel = getattr(sample_triton_kernels, name)
    types, constants = KERNELS[name]
    constants = {**constants, **{key: value for key, value in special.items() if key in kernel.arg_names}}
    constants |= {"ACC": tl.float32} if "ACC" in constants else {}
    given = dict(zip(kernel.arg_names, [f"*{element}" if each == "X" else each for each in types], strict=False))
    signature = {argument: "constexpr" if argument in constants else given[argument] for argument in kernel.arg_names}
    source = ASTSource(kernel, signature=signature, constexprs=constants)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]
