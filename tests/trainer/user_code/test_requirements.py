"""What a job's code needs is installed once on a host, beside what is there, or refused in a sentence."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from syncnorm.trainer.contract.spec import CodeSpec
from syncnorm.trainer.user_code.requirements import (
    RESOLVED,
    RequirementsError,
    layer_of,
    put_requirements_on_path,
    requirement_lines,
)
from tests.helpers.paths import SOURCE
from tests.helpers.wheels import settings_of, write_wheel

PACKAGE = f"sha256:{'0' * 64}"


@pytest.fixture(autouse=True)
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "index"
    write_wheel(folder, "sprockets", "1.0", "TEETH = 12\n")
    write_wheel(folder, "sprockets", "2.0", "TEETH = 24\n")
    write_wheel(folder, "gears", "1.5", "import sprockets\nRATIO = sprockets.TEETH / 6\n", ("sprockets<2",))
    write_wheel(folder, "wants_old_numpy", "1.0", "", ("numpy<1.0",))
    for name, value in settings_of(folder).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SYNCNORM_SCRATCH", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    return folder


def test_what_is_missing_is_installed_with_what_it_needs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))

    layer = put_requirements_on_path(CodeSpec(package=PACKAGE, requirements=["gears>=1", "numpy"]), tmp_path)

    import gears  # type: ignore[import-not-found]

    assert gears.RATIO == 2.0
    assert layer is not None
    assert sys.path[-1] == str(layer)  # behind all that was there
    assert layer_of(["gears>=1", "numpy"]) == layer  # what it holds is not what this host has
    assert (layer / RESOLVED).read_text().split() == ["gears==1.5", "sprockets==1.0"]
    assert sorted(path.name for path in layer.glob("*.py")) == ["gears.py", "sprockets.py"]


def test_layer_is_made_once(index: Path) -> None:
    first = layer_of(["gears"])
    for wheel in index.iterdir():
        wheel.unlink()

    assert layer_of(["gears"]) == first
    with pytest.raises(RequirementsError, match="gears"):
        layer_of(["gears>1"])  # other requirements are another layer


def test_processes_that_need_it_at_once_wait_for_one_of_them() -> None:
    code = "import sys; from syncnorm.trainer.user_code.requirements import layer_of; print(layer_of(['gears']))"
    several = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=_environment())
        for _ in range(3)
    ]

    found = {process.communicate(timeout=120)[0].strip() for process in several}

    assert len(found) == 1
    assert (Path(found.pop()) / "gears.py").exists()


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(SOURCE)}


def test_layer_that_could_not_be_finished_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(RequirementsError, match=r"code.requirements can't be met .*flywheels"):
        layer_of(["gears", "flywheels"])

    left = [path for path in (tmp_path / "scratch").rglob("*") if path.is_dir()]
    assert [path.name for path in left] == [path.name for path in left if path.name.startswith("syncnorm-requirements")]


@pytest.mark.parametrize("line", ["numpy<1.0", "wants_old_numpy"])
def test_versions_that_workers_have_stay(line: str) -> None:
    with pytest.raises(
        RequirementsError, match=rf"can't be met beside .*numpy<1.0.*\(constraint\) numpy=={np.__version__}"
    ):
        layer_of([line])


def test_index_that_can_not_be_reached_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")

    with pytest.raises(RequirementsError, match="the package index can't be reached from this host"):
        layer_of(["flywheels"])


@pytest.mark.parametrize("is_zip", [False, True])
def test_requirements_may_be_a_file_of_the_package(is_zip: bool, tmp_path: Path) -> None:
    files = {
        "requirements.txt": "# what it needs\ngears >= 1  # for the ratio\n\nnumpy\n",
        "pyproject.toml": '[project]\nname = "mine"\nversion = "1"\ndependencies = ["gears"]\n',
    }
    package = tmp_path / "package"
    if is_zip:
        with zipfile.ZipFile(package, "w") as archive:
            for name, text in files.items():
                archive.writestr(name, text)
    else:
        package.mkdir()
        for name, text in files.items():
            (package / name).write_text(text)

    assert requirement_lines("requirements.txt", package) == ["gears >= 1", "numpy"]
    assert requirement_lines("pyproject.toml", package) == ["gears"]
    with pytest.raises(RequirementsError, match=r"the package must hold other\.txt"):
        requirement_lines("other.txt", package)


@pytest.mark.parametrize(
    ("line", "says"),
    [("--index-url http://example.org", "options of pip are not taken"), ("gears >> 1", "such as 'kornia>=0.8'")],
)
def test_what_is_no_requirement_is_named(line: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(RequirementsError, match=says):
        requirement_lines([line], tmp_path)
