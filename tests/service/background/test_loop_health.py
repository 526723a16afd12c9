"""The loops beside the reconciler: a tick that fails is counted where an operator looks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from syncnorm.service.backend_errors import DatabaseUnavailableError
from syncnorm.service.background.loop import Loop
from syncnorm.service.background.retention_loop import Retention
from syncnorm.service.integrations.http_client import HttpClient
from syncnorm.service.integrations.mlflow_describer import RunDescriber
from syncnorm.service.integrations.ray_sweep import ClusterSweep
from syncnorm.service.integrations.webhooks import Webhooks
from syncnorm.service.settings import Settings

URLS = ["http://one.example/", "http://two.example/"]


class Broken:
    """A store, or a cluster, of which nothing works."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __getattr__(self, _name: str) -> Broken:
        return self

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise self._error


def loops_over(broken: Any) -> list[Loop]:
    parts = (
        Webhooks(broken, URLS, b"", HttpClient("A webhook receiver"), "a"),
        Retention(broken, broken, Settings(home=Path()), broken),
        ClusterSweep(broken, broken.known),
        RunDescriber(broken, broken),
    )
    return [loop for part in parts for loop in part.loops()]  # type: ignore[attr-defined]


@pytest.mark.parametrize("error", [ValueError("bad row"), DatabaseUnavailableError("The database is locked.")])
def test_failed_tick_of_every_loop_is_counted(error: Exception) -> None:
    loops = loops_over(Broken(error))
    for loop in loops:
        loop._once()
        loop._once()

    assert {loop.health.name: loop.health.in_a_row for loop in loops} == {
        "webhooks": 2,
        "webhooks-2": 2,
        "retention": 2,
        "cluster-sweep": 2,
        "run-describer": 2,
    }
    assert all(str(error) in loop.health.error for loop in loops)


def test_webhooks_without_a_receiver_need_no_loop() -> None:
    assert Webhooks(Broken(ValueError()), [], b"", HttpClient("it"), "a").loops() == []  # type: ignore[arg-type]
