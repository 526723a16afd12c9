"""A service that dies just after an effect, at every point there is, and the empty worlds in which it does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.helpers.service.databases import fresh_sqlite
from tests.helpers.service.world import World

EFFECTS = {
    "store": ("leases.take", "jobs.move", "attempts.note", "jobs.note", "exports.change"),
    "cluster": ("start", "end"),
    "tracker": ("run_for", "set_status"),
}


class Died(BaseException):
    """The process of the service is gone. Not an Exception: nothing may catch it."""


class Dying:
    """Counts effects and dies just after one of them took effect, before its caller learns of it.

    The service keeps nothing in memory, so this is also the death just before the next effect.
    """

    def __init__(self) -> None:
        self.seen = 0
        self.places: list[tuple[str, object]] = []
        """Name of each effect, and the state of the job or export then."""
        self.state: Callable[[], object] = lambda: None
        self.at: int | None = None

    def wrap(self, port: Any, name: str) -> Any:
        return _Port(self, port, name)

    def around(self, name: str, effect: Callable[..., Any]) -> Callable[..., Any]:
        def act(*args: Any, **options: Any) -> Any:
            index, self.seen = self.seen, self.seen + 1
            self.places.append((name, self.state()))
            result = effect(*args, **options)
            if self.at == index:
                raise Died(name)
            return result

        return act


class _Port:
    def __init__(self, dying: Dying, port: Any, name: str) -> None:
        self._dying, self._port, self._name = dying, port, name

    def __getattr__(self, method: str) -> Any:
        real = getattr(self._port, method)
        port, _, part = self._name.partition(".")
        effect = f"{part}.{method}" if part else method
        if any(one.startswith(f"{effect}.") for one in EFFECTS[port]):
            return _Port(self._dying, real, f"{port}.{effect}")
        return self._dying.around(f"{port}.{effect}", real) if effect in EFFECTS[port] else real


@contextmanager
def new_world(folder: Path, dying: Dying) -> Iterator[World]:
    folder.mkdir()
    with fresh_sqlite(folder) as database:
        yield World(folder, database, wrap=dying.wrap)
