"""Each block of the pages that people follow is run, validated or compared, or says why not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.docs.page_blocks import GIVEN, Use, blocks_of, given, runnable_pages
from tests.helpers.docs.page_reader import missing_lines
from tests.helpers.paths import ROOT


@pytest.mark.parametrize("page", runnable_pages(), ids=str)
def test_each_block_has_a_use(page: Path) -> None:
    found = blocks_of((ROOT / page).read_text())

    assert [f"{page}:{one.line} {one.marker}" for one in found if one.use is Use.UNKNOWN] == []


def test_most_blocks_run() -> None:
    blocks = [block for page in runnable_pages() for block in blocks_of((ROOT / page).read_text())]
    uses = [block.use for block in blocks if not block.marker.startswith("run by ")]

    assert uses.count(Use.COMMANDS) + uses.count(Use.PYTHON) > 2 * uses.count(Use.SKIPPED)


def test_what_is_given_belongs_to_a_page() -> None:
    used = [suffix for page in runnable_pages() for suffix in (".sh", ".py") if given(page, suffix)]

    assert len(used) == len([path for path in GIVEN.rglob("*") if path.is_file()])


@pytest.mark.parametrize(
    ("text", "use"),
    [
        ("```\nsyncnorm ls\n```", Use.COMMANDS),
        ("1. Do this:\n\n   ```sh\n   syncnorm ls\n   ```", Use.COMMANDS),
        ("```\npackage=$(syncnorm package put x)\n```", Use.COMMANDS),
        ("```\n$ syncnorm ls\nNo jobs.\n```", Use.COMMANDS),
        ("```python\nprint(1)\n```", Use.PYTHON),
        ("```yaml\nname: x\n```", Use.SPEC),
        ("```\nNo jobs.\n```", Use.UNKNOWN),
        ("```rust\nls\n```", Use.UNKNOWN),
        ("<!-- test: output -->\n```\nNo jobs.\n```", Use.OUTPUT),
        ("<!-- test: needs a GPU -->\n```\nsyncnorm ls\n```", Use.SKIPPED),
        ("<!-- test: needs patience -->\n```\nsyncnorm ls\n```", Use.UNKNOWN),
        ("<!-- test: run by tests/test_none.py -->\n```\nsyncnorm ls\n```", Use.UNKNOWN),
        ("<!-- test: with train.epochs=1 -->\n```\nsyncnorm submit job.yaml\n```", Use.COMMANDS),
    ],
)
def test_use_of_a_block(text: str, use: Use) -> None:
    (block,) = blocks_of(f"# Page\n\n{text}\n")

    assert block.use is use


def test_marker_stands_for_the_next_block_only() -> None:
    first, second = blocks_of("<!-- test: needs Docker -->\n```\nls\n```\n\nThen:\n\n```\nls\n```\n")

    assert (first.use, second.use) == (Use.SKIPPED, Use.COMMANDS)


@pytest.mark.parametrize(
    ("expected", "printed", "missing"),
    [
        (" val/accuracy   0.97\n", "metric  value\n val/accuracy 0.9312\n", []),
        ("Model  models:/m-8aff", "Model        models:/m-123456789abc", []),
        ("a run … on 2 workers", "a run of a job that trains on 4 workers", []),
        ("queued for 3 s", "waits for 3 s", ["queued for 3 s"]),
        ("bn1 230 0.1", "bn2 230 0.1", ["bn1 230 0.1"]),
    ],
)
def test_lines_of_a_page_are_compared_without_their_numbers(expected: str, printed: str, missing: list[str]) -> None:
    assert missing_lines(expected, printed) == missing
