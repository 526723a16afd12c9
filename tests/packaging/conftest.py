"""The distributions of this checkout, built once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import distributions


@pytest.fixture(scope="session")
def distribution(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The source distribution, and the wheel built from it."""
    return distributions.build(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="session")
def wheel(distribution: tuple[Path, Path]) -> Path:
    return distribution[1]
