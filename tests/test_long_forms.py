"""The long forms can be run in parts, and what ended is kept."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.helpers.combinations import each_value
from tests.helpers.long_forms import Ended, as_table, part_of

ENDED = Ended("tests/a.py::test_a", "passed", 2.4, 1.0, "abc", "2026-01-01")


def test_parts_are_all_of_it_and_no_test_twice() -> None:
    parts = [part_of(25, f"{number}/12") for number in range(1, 13)]

    assert set.union(*parts) == set(range(25))
    assert sum(map(len, parts)) == 25


@pytest.mark.parametrize("part", ["0/12", "13/12", "twelve", "1/0", "1"])
def test_what_is_no_part_is_refused(part: str) -> None:
    with pytest.raises(ValueError):
        part_of(5, part)


def test_the_table_has_a_row_for_each_file_and_the_last_run_of_each_test() -> None:
    failed = replace(ENDED, outcome="failed", commit="old", date="2025-12-31")
    other = replace(ENDED, test="tests/a.py::test_b", seconds=3.0, fraction=0.1)

    *_, row = as_table([failed, ENDED, other]).splitlines()

    assert row == "| `tests/a.py` | 2 | 0 | 0 | 5 | 0.1 | abc | 2026-01-01 |"


def test_short_form_of_combinations_tries_every_value() -> None:
    found = each_value("abc", [1, 2])

    short = [one.values for one in found if not one.marks]
    assert len(found) == 6
    assert short == [("a", 1), ("b", 2), ("c", 1)]
