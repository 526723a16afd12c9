"""Engines, transactions and migrations for SQLite and PostgreSQL."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from pydantic_core import from_json, to_json

MIGRATIONS = Path(__file__).parent / "migrations"
_JSON: dict[str, Any] = {"json_serializer": lambda value: to_json(value).decode(), "json_deserializer": from_json}
"""For JSON columns; a few times faster than the json module."""


class Database:
    """Transactions on one database. Writers on SQLite take turns in the process and begin IMMEDIATE."""

    def __init__(self, url: str, *, synchronous: str = "FULL") -> None:
        """synchronous: SQLite's pragma. FULL outlives a power cut; OFF, for tests, only the death of the process."""
        self.is_sqlite = url.startswith("sqlite")
        self._url = url
        self._turn = threading.Lock()
        if self.is_sqlite:
            Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
            self._writer = _sqlite_engine(url, "BEGIN IMMEDIATE", synchronous)
            self._reader = _sqlite_engine(url, "BEGIN", synchronous)
        else:
            self._writer = self._reader = sa.create_engine(_with_driver(url), pool_pre_ping=True, pool_size=20, **_JSON)

    def migrate(self) -> None:
        """Bring the tables to the newest form."""
        config = _alembic()
        with self._writer.connect() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def revisions(self) -> tuple[str | None, str | None]:
        """The form the tables are in, and the one this version needs."""
        with self.read() as connection:
            current = MigrationContext.configure(connection).get_current_revision()
        return current, ScriptDirectory.from_config(_alembic()).get_current_head()

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        if self.is_sqlite:
            with self._turn, self._writer.begin() as connection:
                yield connection
        else:
            with self._writer.begin() as connection:
                yield connection

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        with self._reader.begin() as connection:
            yield connection

    def now(self, connection: sa.Connection | None = None) -> datetime:
        """Database time: leases must not depend on the clocks of several hosts."""
        if self.is_sqlite:
            return datetime.now(UTC)
        if connection is None:
            with self.read() as reading:
                return self.now(reading)
        value: datetime = connection.execute(sa.text("SELECT clock_timestamp()")).scalar_one()
        return value.astimezone(UTC)

    def close(self) -> None:
        self._writer.dispose()
        self._reader.dispose()


def _alembic() -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    return config


def _with_driver(url: str) -> str:
    for prefix in ("postgresql://", "postgres://"):
        if url.startswith(prefix):
            return "postgresql+psycopg://" + url.removeprefix(prefix)
    return url


def _sqlite_engine(url: str, begin: str, synchronous: str) -> sa.Engine:
    engine = sa.create_engine(url, connect_args={"timeout": 30, "check_same_thread": False}, pool_size=20, **_JSON)

    @sa.event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # SQLAlchemy begins transactions itself, below
        for pragma in ("journal_mode=WAL", f"synchronous={synchronous}", "foreign_keys=ON", "busy_timeout=30000"):
            connection.execute(f"PRAGMA {pragma}")

    @sa.event.listens_for(engine, "begin")
    def _on_begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine
