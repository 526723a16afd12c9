"""Normalization for training on more than one device. See norm/README.md.

What needs torch is loaded at first use, so that a service can read the table of kinds without it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from norm.traits import KINDS, Kind

if TYPE_CHECKING:
    from norm.auditing import audit
    from norm.backends.ledger import ExchangeError, WorkerGoneError
    from norm.conversion import Override, Replacement, convert, revert
    from norm.findings import Finding
    from norm.fixup import ResidualBranch, register_residual_block
    from norm.folding import Folded, fold
    from norm.groups import create_group
    from norm.loss_weighting import loss_weight
    from norm.moments import Moments, synced_moments
    from norm.population import LayerPopulation, PopulationStatistics, recompute_population_statistics
    from norm.registry import build
    from norm.snapshots import NormSnapshot, observe, snapshot
    from norm.sources import Source, register_source
    from norm.sync_batch_norm import SyncBatchNorm
    from norm.weight import initialize_weight_norm

# Public name -> the module it is loaded from.
_LAZY = {
    "Finding": "norm.findings",
    "ExchangeError": "norm.backends.ledger",
    "WorkerGoneError": "norm.backends.ledger",
    "Folded": "norm.folding",
    "LayerPopulation": "norm.population",
    "Moments": "norm.moments",
    "NormSnapshot": "norm.snapshots",
    "Override": "norm.conversion",
    "PopulationStatistics": "norm.population",
    "Replacement": "norm.conversion",
    "ResidualBranch": "norm.fixup",
    "Source": "norm.sources",
    "SyncBatchNorm": "norm.sync_batch_norm",
    "audit": "norm.auditing",
    "build": "norm.registry",
    "create_group": "norm.groups",
    "loss_weight": "norm.loss_weighting",
    "convert": "norm.conversion",
    "fold": "norm.folding",
    "observe": "norm.snapshots",
    "initialize_weight_norm": "norm.weight",
    "recompute_population_statistics": "norm.population",
    "register_residual_block": "norm.fixup",
    "register_source": "norm.sources",
    "revert": "norm.conversion",
    "snapshot": "norm.snapshots",
    "synced_moments": "norm.moments",
}

__all__ = [
    "KINDS",
    "ExchangeError",
    "Finding",
    "Folded",
    "Kind",
    "LayerPopulation",
    "Moments",
    "NormSnapshot",
    "Override",
    "PopulationStatistics",
    "Replacement",
    "ResidualBranch",
    "Source",
    "SyncBatchNorm",
    "WorkerGoneError",
    "audit",
    "build",
    "convert",
    "create_group",
    "fold",
    "initialize_weight_norm",
    "kinds",
    "loss_weight",
    "observe",
    "recompute_population_statistics",
    "register_residual_block",
    "register_source",
    "revert",
    "snapshot",
    "synced_moments",
]


def kinds() -> dict[str, Kind]:
    """Every normalization by name, with its traits."""
    return dict(KINDS)


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'norm' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
