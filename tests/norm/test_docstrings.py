"""The examples in the docstrings run as printed."""

from __future__ import annotations

import doctest
import pkgutil
from importlib import import_module
from types import ModuleType

import pytest
import torch
from torch import nn

from syncnorm import norm

GLOBALS = {"torch": torch, "nn": nn, "norm": norm}
"""What every example starts from: `import torch`, `from torch import nn` and this package as `norm`."""
MODULES = [
    module.name
    for module in pkgutil.walk_packages(norm.__path__, f"{norm.__name__}.")
    if not module.name.endswith("triton_kernels")  # needs Triton
]


@pytest.mark.parametrize("name", [norm.__name__, *MODULES])
def test_examples_print_what_they_say(name: str) -> None:
    module: ModuleType = import_module(name)
    torch.manual_seed(0)

    failed, _ = doctest.testmod(module, extraglobs=GLOBALS, optionflags=doctest.IGNORE_EXCEPTION_DETAIL)

    assert failed == 0


@pytest.mark.parametrize("name", sorted(set(norm.__all__) - {"KINDS"}))
def test_every_public_name_has_an_example(name: str) -> None:
    assert ">>> " in (getattr(norm, name).__doc__ or "")
