"""Every field of a study says in the string under it what it means and what holds where you leave it out."""

from __future__ import annotations

from syncnorm.service.jobs.study_spec import StudySpec
from tests.helpers.field_docs import undocumented, without_default


def test_every_field_is_documented() -> None:
    assert undocumented(StudySpec) == []


def test_every_field_states_its_default() -> None:
    assert without_default(StudySpec) == []
