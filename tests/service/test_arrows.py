"""Every move between states happens as its story tells, also when the service dies at any point of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from service import files
from service.database import Database
from service.jobs import ARROWS, JobState
from tests.service.scenarios import STORIES, Teller
from tests.service.world import World

MAX_STEPS = 120
EFFECTS = {
    "store": ("take_lease", "move", "note_attempt", "note_job"),
    "cluster": ("start", "end"),
    "tracker": ("run_for", "set_status"),
}
Arrow = tuple[JobState, JobState]


class Died(BaseException):
    """The process of the service is gone. Not an Exception: nothing may catch it."""


class Dying:
    """Counts effects and dies just after one of them took effect, before its caller learns of it.

    The service keeps nothing in memory, so this is also the death just before the next effect.
    """

    def __init__(self) -> None:
        self.seen = 0
        self.places: list[tuple[str, JobState | None]] = []
        """Name of each effect, and the state of the job then."""
        self.state: Callable[[], JobState | None] = lambda: None
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
        if method not in EFFECTS[self._name]:
            return real
        return self._dying.around(f"{self._name}.{method}", real)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database of the newest form."""
    path = tmp_path_factory.mktemp("template") / "service.db"
    with closing(Database(f"sqlite:///{path}")) as database:
        database.migrate()
    return path


@contextmanager
def new_world(template: Path, folder: Path, dying: Dying) -> Iterator[World]:
    folder.mkdir()
    shutil.copy(template, folder / "service.db")
    with closing(Database(f"sqlite:///{folder / 'service.db'}", synchronous="OFF")) as database:
        yield World(folder, database, wrap=dying.wrap)


def play(world: World, teller: Teller) -> None:
    """Tell the story to its end; a service that dies is started again."""
    for _ in range(MAX_STEPS):
        if teller.is_over():
            return
        teller.prompt()
        try:
            world.step()
        except Died:
            world.boot()
    states = [world.job(job.id).state for job in teller.jobs]
    pytest.fail(f"not over after {MAX_STEPS} steps: {states}")


def test_every_arrow_has_a_story() -> None:
    assert set(STORIES) == set(ARROWS)


ALL_ARROWS = pytest.mark.parametrize("arrow", STORIES, ids=lambda arrow: f"{arrow[0]}-{arrow[1]}")


@ALL_ARROWS
def test_story_ends_well_wherever_the_service_dies(
    arrow: Arrow, template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Short form: each effect once in each state of the job."""
    _die_everywhere(arrow, template, tmp_path, monkeypatch, every_time=False)


@pytest.mark.chaos
@ALL_ARROWS
def test_story_ends_well_whenever_the_service_dies(
    arrow: Arrow, template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long form: each effect each time."""
    _die_everywhere(arrow, template, tmp_path, monkeypatch, every_time=True)


def _die_everywhere(
    arrow: Arrow, template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, every_time: bool
) -> None:
    dying = Dying()
    monkeypatch.setattr(files, "write_launch", dying.around("files.write_launch", files.write_launch))
    with new_world(template, tmp_path / "quiet", dying) as world:
        teller = Teller(world, STORIES[arrow])
        dying.state = lambda: world.job(teller.jobs[0].id).state
        play(world, teller)
        assert arrow in world.arrows(teller.jobs[0].id)
    places = dying.places
    points = list(range(dying.seen)) if every_time else [places.index(place) for place in dict.fromkeys(places)]
    dying.state = lambda: None

    for point in points:
        with new_world(template, tmp_path / str(point), dying) as world:
            dying.seen, dying.at = 0, point
            teller = Teller(world, STORIES[arrow])
            play(world, teller)

            assert world.job(teller.jobs[0].id).state is STORIES[arrow].ends, places[point]
            for job in teller.jobs:
                world.check_settled(world.job(job.id))
