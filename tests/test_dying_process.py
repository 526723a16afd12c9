"""A process of `make test` that dies costs one test, not the run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.helpers.paths import ROOT

HARMLESS = "def test_one(): pass\ndef test_two(): pass\n"
DEADLY = "import os, time\ndef test_before(): time.sleep(1)\ndef test_dies(): os._exit(1)\ndef test_after(): pass\n"


def test_process_that_dies_fails_the_test_it_was_in_and_no_other(tmp_path: Path) -> None:
    for number in range(6):
        (tmp_path / f"test_file_{number}.py").write_text(HARMLESS)
    (tmp_path / "test_file_6.py").write_text(DEADLY)
    spread = ["-n", "2", "--no-loadscope-reorder", "-p", "tests.conftest", "-p", "no:cacheprovider"]

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *spread, tmp_path],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )

    assert "1 failed, 14 passed" in done.stdout, done.stdout
    assert "crashed while running 'test_file_6.py::test_dies'" in done.stdout
