"""Which tests share a process: `make test` spreads them over two."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOMS = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The tests of a file stay together, and all of stack, which share one service and take longest: they go first."""
    items.sort(key=lambda item: _group(item) != "stack")
    if config.pluginmanager.hasplugin("xdist"):
        for item in items:
            item.add_marker(pytest.mark.xdist_group(_group(item)))


def _group(item: pytest.Item) -> str:
    file = item.path.relative_to(ROOMS)
    return "stack" if file.parts[0] == "stack" else str(file)
