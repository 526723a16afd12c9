"""The commands and the Python of the pages that people follow, run in their order against one real service.

Each page has a folder of its own with the examples in it. What a page expects its reader to have, such as a `job.yaml`,
is made by the scripts in given/ with the name of the page.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.docs.page_blocks import Use, blocks_of, given, runnable_pages
from tests.helpers.docs.page_reader import Reader
from tests.helpers.paths import EXAMPLES, ROOT
from tests.stack.conftest import Serving, eventually

pytestmark = [pytest.mark.stack, pytest.mark.timeout(1800)]


def _runs(page: Path) -> bool:
    return bool({block.use for block in blocks_of((ROOT / page).read_text())} & {Use.COMMANDS, Use.PYTHON})


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    running = Serving(tmp_path_factory.mktemp("home"))
    try:
        eventually(running.ready, 180).close()
        yield running
    finally:
        running.interrupt()


@pytest.mark.parametrize("page", [page for page in runnable_pages() if _runs(page)], ids=str)
def test_commands_of_a_page_run(page: Path, service: Serving, tmp_path: Path) -> None:
    shutil.copytree(EXAMPLES, tmp_path / "reader" / "examples")
    reader = Reader(tmp_path / "reader", service.home, printed=service.text())
    try:
        reader.type(given(page, ".sh"))
        reader.run(given(page, ".py"))
        for block in blocks_of((ROOT / page).read_text()):
            reader.follow(block)
    finally:
        reader.leave()
