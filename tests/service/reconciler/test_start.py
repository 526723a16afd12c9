"""While a Ray that starts with the service is not up yet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from syncnorm.service.backend_errors import DatabaseUnavailableError
from syncnorm.service.integrations.ray_jobs import ClusterState
from syncnorm.service.reconciler.reconciler import Reconciler
from tests.helpers.service.databases import fresh_sqlite
from tests.helpers.service.world import World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with fresh_sqlite(tmp_path) as database:
        yield World(tmp_path, database)


def _warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize(("starts_in_s", "told"), [(60.0, 0), (0.0, 1)])
def test_cluster_that_has_yet_to_start_is_no_outage(
    world: World, caplog: pytest.LogCaptureFixture, starts_in_s: float, told: int
) -> None:
    reconciler = Reconciler(world.reconciler.backends, cluster_starts_in_s=starts_in_s)
    world.cluster.reachable = False

    reconciler.tick()

    assert len(_warnings(caplog)) == told


def test_cluster_that_stops_answering_soon_after_its_start_is_an_outage(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    reconciler = Reconciler(world.reconciler.backends, cluster_starts_in_s=60.0)
    reconciler.tick()
    world.cluster.reachable = False

    reconciler.tick()

    assert _warnings(caplog) == ["Ray unreachable; nothing starts until it answers"]


def test_database_that_is_away_is_not_told_as_an_outage_of_ray(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> ClusterState:
        raise DatabaseUnavailableError("The database can't be reached.")

    monkeypatch.setattr(world.reconciler.backends.dispatcher, "observe", refuse)

    with pytest.raises(DatabaseUnavailableError):
        world.reconciler.tick()

    assert _warnings(caplog) == []
