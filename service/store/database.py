"""Engines, transactions and migrations for SQLite and PostgreSQL."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from pydantic_core import from_json, to_json

from syncnorm.service.backend_errors import DatabaseUnavailableError
from syncnorm.service.store.database_faults import unavailability

MIGRATIONS = Path(__file__).resolve().parent.parent / "migrations"


@dataclass(frozen=True)
class InvalidJson:
    """Stands for the value of a JSON column that is not JSON: one such row must not hide the others of a list."""

    content: str

    def __str__(self) -> str:
        return self.content


def _from_json(content: str | bytes) -> Any:
    try:
        return from_json(content)
    except ValueError:
        return InvalidJson(str(content))


_JSON: dict[str, Any] = {"json_serializer": lambda value: to_json(value).decode(), "json_deserializer": _from_json}
"""For JSON columns; a few times faster than the json module."""
_PATIENCE_S, _PROBE_S = 10.0, 1.0
"""Seconds to wait for a lock or a free connection; then the request is answered 503."""


class UnusableDatabaseError(Exception):
    """The service can't start on this database, and waiting would not help."""


class Database:
    """Transactions on one database. Writers on SQLite take turns within the process and begin IMMEDIATE."""

    def __init__(self, url: str, *, synchronous: str = "FULL") -> None:
        """synchronous: SQLite's pragma. FULL outlives a power cut; OFF, for tests, only the death of the process."""
        self.is_sqlite = url.startswith("sqlite")
        self._url = url
        self._turn = threading.Lock()
        self._clock: Callable[[], datetime] | None = None
        if self.is_sqlite:
            Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
            self._writer = _sqlite_engine(url, "BEGIN IMMEDIATE", synchronous)
            self._reader = _sqlite_engine(url, "BEGIN", synchronous)
            self._prober = _sqlite_engine(url, "BEGIN IMMEDIATE", synchronous, patience_s=_PROBE_S)
        else:
            self._writer = self._reader = self._prober = _postgres_engine(url)

    def timed_by(self, clock: Callable[[], datetime]) -> Database:
        """The same database with another clock, for tests."""
        timed = copy.copy(self)
        timed._clock = clock
        return timed

    def migrate(self) -> None:
        """Migrate the tables to the newest form.

        Raises: UnusableDatabaseError for tables of a newer version and a damaged file; DatabaseUnavailableError.
        """
        config = _alembic()
        with _named_errors(), self._writer.connect() as connection:
            if self.is_sqlite:
                _require_whole(connection)
            _require_known(MigrationContext.configure(connection).get_current_revision())
            connection.rollback()  # so that each migration begins a transaction of its own
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def revisions(self) -> tuple[str | None, str | None]:
        """The form the tables are in, and the one this version needs."""
        with self.read() as connection:
            current = MigrationContext.configure(connection).get_current_revision()
        return current, ScriptDirectory.from_config(_alembic()).get_current_head()

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """One transaction. Raises: DatabaseUnavailableError, and then nothing of it was written."""
        with self._in_turn(), self._transaction(self._writer) as connection:
            yield connection

    @contextmanager
    def try_write(self) -> Iterator[sa.Connection]:
        """Like `write`, but without waiting long for other writers."""
        with self._transaction(self._prober) as connection:
            yield connection

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """Raises: DatabaseUnavailableError."""
        with self._transaction(self._reader) as connection:
            yield connection

    @contextmanager
    def _transaction(self, engine: sa.Engine) -> Iterator[sa.Connection]:
        """On SQLite a connection whose transaction failed is closed, not used again. Whoever holds the error holds its
        open cursors, and with an open cursor SQLite keeps the old view of the database even after a rollback."""
        with _named_errors(), engine.connect() as connection:
            try:
                with connection.begin():
                    yield connection
            except BaseException:
                if self.is_sqlite:
                    connection.invalidate()
                raise

    @contextmanager
    def _in_turn(self) -> Iterator[None]:
        if not self.is_sqlite:
            yield
            return
        if not self._turn.acquire(timeout=_PATIENCE_S):
            raise DatabaseUnavailableError("The database is locked by another writer. Try again.")
        try:
            yield
        finally:
            self._turn.release()

    def now(self, connection: sa.Connection | None = None) -> datetime:
        """Database time: leases must not depend on the clocks of several hosts."""
        if self._clock is not None:
            return self._clock()
        if self.is_sqlite:
            return datetime.now(UTC)
        if connection is None:
            with self.read() as reading:
                return self.now(reading)
        value: datetime = connection.execute(sa.text("SELECT clock_timestamp()")).scalar_one()
        return value.astimezone(UTC)

    def close(self) -> None:
        for engine in (self._writer, self._reader, self._prober):
            engine.dispose()


def _alembic() -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    return config


def _with_driver(url: str) -> str:
    for prefix in ("postgresql://", "postgres://"):
        if url.startswith(prefix):
            return "postgresql+psycopg://" + url.removeprefix(prefix)
    return url


@contextmanager
def _named_errors() -> Iterator[None]:
    try:
        yield
    except (sa.exc.DBAPIError, sa.exc.TimeoutError) as error:
        if why := unavailability(error):
            raise DatabaseUnavailableError(f"The database {why}") from error
        raise


def _require_whole(connection: sa.Connection) -> None:
    (found,) = connection.exec_driver_sql("PRAGMA quick_check(1)").scalars()
    if found != "ok":
        raise UnusableDatabaseError(f"the database file is damaged: {found.splitlines()[0]}. Restore a backup.")


def _require_known(revision: str | None) -> None:
    scripts = ScriptDirectory.from_config(_alembic())
    if revision is not None and revision not in {script.revision for script in scripts.walk_revisions()}:
        raise UnusableDatabaseError(
            f"the database has tables of a newer syncnorm (form {revision}; this version knows forms up to "
            f"{scripts.get_current_head()}). Start that version, or restore the backup from before the upgrade."
        )


def _postgres_engine(url: str) -> sa.Engine:
    return sa.create_engine(
        _with_driver(url),
        pool_pre_ping=True,
        pool_size=20,
        pool_timeout=_PATIENCE_S,
        connect_args={"connect_timeout": int(_PATIENCE_S)},
        **_JSON,
    )


def _sqlite_engine(url: str, begin: str, synchronous: str, patience_s: float = _PATIENCE_S) -> sa.Engine:
    engine = sa.create_engine(
        url, connect_args={"timeout": patience_s, "check_same_thread": False}, pool_size=20, **_JSON
    )

    @sa.event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # SQLAlchemy begins transactions itself, below
        connection.execute(
            "PRAGMA auto_vacuum=INCREMENTAL"
        )  # first: it takes effect only before the first table exists
        for pragma in ("journal_mode=WAL", f"synchronous={synchronous}", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @sa.event.listens_for(engine, "begin")
    def _on_begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine
