"""Normalization for training on more than one device. See norm/README.md.

What needs torch is loaded at first use, so that a service can read the table of kinds without it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from norm.traits import KINDS, Kind

if TYPE_CHECKING:
    from norm.moments import Moments, synced_moments
    from norm.sync_batch_norm import SyncBatchNorm

# Public name -> the module it is loaded from.
_LAZY = {
    "Moments": "norm.moments",
    "SyncBatchNorm": "norm.sync_batch_norm",
    "synced_moments": "norm.moments",
}

__all__ = ["KINDS", "Kind", "Moments", "SyncBatchNorm", "kinds", "synced_moments"]


def kinds() -> dict[str, Kind]:
    """Every normalization by name, with its traits."""
    return dict(KINDS)


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'norm' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
