"""Normalization for training on more than one device. See norm/README.md."""

from __future__ import annotations

from norm.traits import KINDS, Kind


def kinds() -> dict[str, Kind]:
    """Every normalization by name, with its traits."""
    return dict(KINDS)
