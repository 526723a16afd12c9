"""deploy/ray_start.py, without a Ray."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import pytest

from tests.helpers.deploy.composition import ROOT


@pytest.fixture
def ray_start(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("ray_start", ROOT / "deploy" / "ray_start.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "_POLL_S", 0.0)
    return module


def test_node_that_registers_late_is_waited_for(ray_start: ModuleType) -> None:
    asked: list[str] = []

    def get_node(address: str, node: str) -> str:
        asked.append(address)
        if len(asked) < 4:
            raise RuntimeError("GCS cannot find the node")
        return node

    assert ray_start.patient(get_node)("head:6379", "n1") == "n1"
    assert len(asked) == 4


def test_node_that_never_registers_ends_the_start(ray_start: ModuleType) -> None:
    def get_node() -> str:
        raise RuntimeError("GCS cannot find the node")

    with pytest.raises(RuntimeError, match="cannot find the node"):
        ray_start.patient(get_node, patience_s=0.0)()


def test_patience_ends_before_the_health_check_counts(ray_start: ModuleType) -> None:
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()

    assert "--start-period=180s" in dockerfile
    assert ray_start.PATIENCE_S < 180.0
