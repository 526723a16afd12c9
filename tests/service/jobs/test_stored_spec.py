"""A stored spec is read once, and one that can't be read any more hurts nobody."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from syncnorm.service.jobs import stored_spec
from syncnorm.service.jobs.stored_spec import StoredSpec
from syncnorm.trainer.contract.spec_reader import read_spec

SPEC = read_spec(
    {
        "name": "job",
        "model": {"name": "mlp"},
        "data": {"name": "digits", "batch_size": 32},
        "env": {"PLAIN": "value", "TOKEN": {"secret": "HF"}},
    }
)


def test_spec_comes_back_as_it_was_submitted() -> None:
    stored = StoredSpec(StoredSpec.of(SPEC).document)

    assert (stored.value, stored.problem) == (SPEC, None)
    assert stored.export == SPEC.export
    assert stored.secrets == {"TOKEN": "HF"}


def test_spec_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[object] = []
    read = stored_spec.read_stored
    monkeypatch.setattr(stored_spec, "read_stored", lambda document: (reads.append(document), read(document))[1])
    stored = StoredSpec.of(SPEC)

    assert reads == []
    assert stored.require() is stored.value is stored.require()
    assert len(reads) == 1


def test_spec_of_another_version_says_why_and_keeps_what_is_known() -> None:
    stored = StoredSpec({**StoredSpec.of(SPEC).document, "of_the_future": 1})

    assert stored.value is None
    assert "of_the_future" in (stored.problem or "")
    with pytest.raises(ValidationError, match="of_the_future"):
        stored.require()
    assert (stored.group, stored.export, stored.secrets) == (None, SPEC.export, {"TOKEN": "HF"})


def test_section_that_is_changed_leaves_the_others_alone() -> None:
    stored = StoredSpec.of(SPEC)

    changed = stored.with_section("limits", stored.limits | {"deadline_s": 60.0})

    assert changed.require().limits.deadline_s == 60.0
    assert changed.with_section("limits", stored.limits) == stored
