"""Whatever a field of a submit holds: it is refused with a problem, or the job is one that hurts nobody."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from syncnorm.service.store.database import Database
from tests.service.poison import documents
from tests.service.poison.conftest import NewScene
from tests.service.poison.extremes import Poison
from tests.service.poison.groups import Faults, culprits, must_be_none, share_of
from tests.service.poison.scene import Scene
from tests.service.poison.stories import live_through, live_through_study, submit_all

Story = Callable[[Scene, Sequence[str]], list[str]]


def faults_of(
    new_scene: NewScene, poisons: Sequence[Poison], story: Story = live_through, to: str = "/v1/jobs"
) -> Faults:
    with new_scene() as scene:
        accepted, refused = submit_all(scene, poisons, to)
        if not story(scene, list(accepted)):
            return refused

    def check(group: Sequence[Poison]) -> list[str]:
        with new_scene() as scene:
            return story(scene, list(submit_all(scene, group, to)[0]))

    return refused | culprits(list(accepted.values()), check)


@pytest.mark.parametrize(("document", "to"), [(documents.JOB, "/v1/jobs"), (documents.STUDY, "/v1/studies")])
def test_document_without_an_extreme_is_accepted(new_scene: NewScene, document: dict[str, Any], to: str) -> None:
    with new_scene() as scene:
        assert scene.submit(json.dumps(document).encode(), to=to) is not None


def test_extremes_of_every_field_of_a_job_hurt_nobody(new_scene: NewScene, database: Database) -> None:
    poisons = [poison for section in documents.SECTIONS for poison in documents.of_section(section, documents.SHARE)]

    must_be_none(faults_of(new_scene, share_of(poisons, database, 24)))


def test_extremes_of_built_in_arguments_hurt_nobody(new_scene: NewScene, database: Database) -> None:
    must_be_none(faults_of(new_scene, share_of(list(documents.of_catalog(documents.SHARE)), database, 96)))


def test_extremes_of_every_field_of_a_study_hurt_nobody(new_scene: NewScene, database: Database) -> None:
    poisons = share_of(list(documents.of_study(documents.SHARE)), database, 48)

    must_be_none(faults_of(new_scene, poisons, live_through_study, "/v1/studies"))


@pytest.mark.chaos
@pytest.mark.parametrize("section", documents.SECTIONS)
def test_extremes_of_every_field_of_a_job_hurt_nobody_long(new_scene: NewScene, section: str) -> None:
    must_be_none(faults_of(new_scene, documents.of_section(section, 1)))


@pytest.mark.chaos
def test_extremes_of_built_in_arguments_hurt_nobody_long(new_scene: NewScene) -> None:
    must_be_none(faults_of(new_scene, list(documents.of_catalog(1))))


@pytest.mark.chaos
def test_extremes_of_every_field_of_a_study_hurt_nobody_long(new_scene: NewScene) -> None:
    must_be_none(faults_of(new_scene, list(documents.of_study(1)), live_through_study, "/v1/studies"))
