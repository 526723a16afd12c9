"""The tables of the README say what the code does."""

from __future__ import annotations

from syncnorm.norm import KINDS
from tests.helpers.paths import ROOT

README = (ROOT / "docs" / "reference" / "normalizations.md").read_text()


def _rows() -> dict[str, list[str]]:
    lines = README.split("## All kinds")[1].split("## ")[0].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `")]
    return {row[0].strip("`"): row[1:] for row in cells}


def test_table_has_every_kind_with_its_traits() -> None:
    found = {name: [bool(cell) for cell in row[:4]] for name, row in _rows().items()}

    assert found == {
        name: [kind.batch_statistics, kind.running_statistics, kind.synchronizes, kind.foldable]
        for name, kind in KINDS.items()
    }


def test_table_has_every_option() -> None:
    for name, row in _rows().items():
        options = [] if not row[5] else row[5].split(", ")
        assert options in (list(KINDS[name].options), ["the same"]), name
        assert row[4].split() == [str(dims) for dims in KINDS[name].dims]


def test_advice_names_every_kind() -> None:
    advice = README.split("## Which kind when")[1].split("## ")[0]

    assert [name for name in KINDS if f"`{name}`" not in advice] == []


def test_page_names_the_kinds_that_windows_change() -> None:
    (sentence,) = [line for line in README.split("\n\n") if line.startswith("Statistics of each sample by itself")]

    assert [name for name in KINDS if f"`{name}`" in sentence] == [
        name for name, kind in KINDS.items() if kind.sample_statistics
    ]
