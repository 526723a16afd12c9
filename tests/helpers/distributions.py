"""The source distribution and the wheel of this checkout, and virtual environments to install them into."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import venv
from pathlib import Path

from tests.helpers.paths import ROOT

PARTS = ("syncnorm", "norm", "trainer", "service", "examples", "pyproject.toml", "MANIFEST.in", "LICENSE", "README.md")
_SET_HERE = ("PYTHONPATH", "SYNCNORM_")
_OF_BUILDS = shutil.ignore_patterns("__pycache__", "*.egg-info")


def build(folder: Path) -> tuple[Path, Path]:
    """The source distribution, and the wheel that is built from it alone."""
    tree = folder / "tree"
    for name in PARTS:
        source, target = ROOT / name, tree / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, symlinks=True, ignore=_OF_BUILDS)
        else:
            shutil.copy(source, target)
    made = "from setuptools import build_meta; build_meta.build_sdist('..')"
    run(sys.executable, "-c", made, cwd=tree)
    source = next(folder.glob("*.tar.gz"))
    with tarfile.open(source) as opened:
        opened.extractall(folder, filter="data")
    unpacked = folder / source.name.removesuffix(".tar.gz")
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", "..", ".", cwd=unpacked)
    return source, next(folder.glob("*.whl"))


def environment(folder: Path) -> Path:
    """The interpreter of a new virtual environment that holds pip alone."""
    venv.create(folder, with_pip=True, symlinks=True)
    return folder / "bin" / "python"


def clean_environment() -> dict[str, str]:
    """Ours without what would lead to this checkout, or to a service that happens to run."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_SET_HERE)}
    return kept | {"SYNCNORM_URL": "http://127.0.0.1:1"}


def run(*command: str, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """In `cwd`, where Python finds nothing of this checkout."""
    done = subprocess.run(command, cwd=cwd, env=clean_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0 or not check, f"{command}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done
