"""Databases for this folder, each made once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from syncnorm.service.store.database import Database
from tests.helpers.service.databases import fresh_sqlite, postgres_programs, postgres_server
from tests.service.poison.scene import Scene, scene

NewScene = Callable[..., AbstractContextManager[Scene]]
ON_ONE_DATABASE = pytest.mark.parametrize("database", ["sqlite"], indirect=True)
"""For tests that wait for what is not the database."""


@pytest.fixture(scope="session")
def postgres() -> Iterator[Database]:
    programs = postgres_programs()
    if programs is None:
        pytest.skip("no PostgreSQL server is installed (Debian: apt-get install postgresql)")
    with postgres_server(programs) as url, closing(Database(url)) as made:
        made.migrate()
        yield made


@pytest.fixture(scope="session")
def sqlite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    with fresh_sqlite(tmp_path_factory.mktemp("sqlite")) as made:
        yield made


@pytest.fixture(scope="session", params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> Database:
    name: Any = "postgres" if request.param == "postgresql" else request.param
    found: Database = request.getfixturevalue(name)
    return found


@pytest.fixture
def new_scene(database: Database, tmp_path: Path) -> NewScene:
    """Makes scenes, one after the other, each on an empty database."""
    return partial(scene, tmp_path, database)
