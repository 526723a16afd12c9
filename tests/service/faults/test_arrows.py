"""Every move between states happens as its story tells, also when the service dies at any point of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from syncnorm.service.jobs.job import ARROWS, JobState
from syncnorm.service.storage import attempt_files as files
from tests.helpers.service.dying import Died, Dying, new_world
from tests.helpers.service.scenarios import STORIES, Teller
from tests.helpers.service.world import World

MAX_STEPS = 120
_SHARE = 3
"""The short form dies at one of so many places."""
Arrow = tuple[JobState, JobState]


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
    arrow: Arrow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Short form: some effects, other ones for each arrow."""
    _die_everywhere(arrow, tmp_path, monkeypatch, share=slice(list(STORIES).index(arrow) % _SHARE, None, _SHARE))


@pytest.mark.chaos
@ALL_ARROWS
def test_story_ends_well_whenever_the_service_dies(
    arrow: Arrow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long form: each effect each time."""
    _die_everywhere(arrow, tmp_path, monkeypatch)


def _die_everywhere(
    arrow: Arrow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, share: slice | None = None
) -> None:
    """share: of the effects, each once in each state of the job; None: all of them, each time."""
    dying = Dying()
    monkeypatch.setattr(files, "write_launch", dying.around("files.write_launch", files.write_launch))
    with new_world(tmp_path / "quiet", dying) as world:
        teller = Teller(world, STORIES[arrow])
        dying.state = lambda: world.job(teller.jobs[0].id).state
        play(world, teller)
        assert arrow in world.arrows(teller.jobs[0].id)
    places = dying.places
    points = [places.index(place) for place in dict.fromkeys(places)][share] if share else list(range(dying.seen))
    dying.state = lambda: None

    for point in points:
        with new_world(tmp_path / str(point), dying) as world:
            dying.seen, dying.at = 0, point
            teller = Teller(world, STORIES[arrow])
            play(world, teller)

            assert world.job(teller.jobs[0].id).state is STORIES[arrow].ends, places[point]
            for job in teller.jobs:
                world.check_settled(world.job(job.id))
