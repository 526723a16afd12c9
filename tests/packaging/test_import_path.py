"""Other processes find syncnorm, and of a checkout nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from syncnorm.import_path import EXAMPLES, python_path, without_checkout
from tests.helpers.paths import ROOT, SOURCE


def test_child_finds_syncnorm_of_this_checkout_and_none_of_its_folders(tmp_path: Path) -> None:
    code = (
        "import syncnorm, importlib.util as u; print(syncnorm.__file__, u.find_spec('trainer'), u.find_spec('tests'))"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], env=python_path({}), cwd=tmp_path, capture_output=True, text=True, check=True
    )

    assert done.stdout.split() == [str(SOURCE / "syncnorm" / "__init__.py"), "None", "None"]


def test_what_a_user_put_on_pythonpath_stays_behind_syncnorm() -> None:
    assert python_path({"PYTHONPATH": "/a:/b", "X": "1"}) == {"PYTHONPATH": f"{SOURCE}:/a:/b", "X": "1"}


@pytest.mark.parametrize("entry", ["", ".", str(ROOT), f"{ROOT}/", str(ROOT / "norm" / "..")])
def test_root_of_the_checkout_leaves_the_path(entry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)

    assert without_checkout(["/own", entry, str(SOURCE), "/lib"], {}) == ["/own", str(SOURCE), "/lib"]


def test_root_that_somebody_put_on_pythonpath_stays() -> None:
    path = ["", str(ROOT), "/lib"]

    assert without_checkout(path, {"PYTHONPATH": os.pathsep.join(["/own", str(ROOT)])}) == path


def test_another_folder_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    assert without_checkout(["", "/lib"], {"PYTHONPATH": ""}) == ["", "/lib"]


def test_examples_come_with_the_package() -> None:
    assert (EXAMPLES / "digits-sync-batch.yaml").is_file()
