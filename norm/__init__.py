"""Normalization for training on more than one device. See norm/README.md.

>>> from syncnorm.norm import build, kinds
>>> sorted(name for name, kind in kinds().items() if kind.synchronizes)
['sync_batch', 'sync_batch_renorm']
>>> build("group", 64).num_groups
32

A name is imported at its first use, so that a service can read the table of kinds without torch.
"""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path
from typing import Any


def _public_names() -> dict[str, str]:
    """Public name -> the module it is defined in, as __init__.pyi lists them."""
    stub = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names}


_DEFINED_IN = _public_names()
__all__ = sorted(_DEFINED_IN)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _DEFINED_IN:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(_DEFINED_IN[name]), name)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ModuleNotFoundError(
            f"syncnorm.norm.{name} needs torch, which is not installed: pip install 'syncnorm[norm]'", name="torch"
        ) from error


def __dir__() -> list[str]:
    return __all__
