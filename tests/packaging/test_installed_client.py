"""`pip install syncnorm` into an empty virtual environment: what its user gets."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import syncnorm
from tests.helpers.distributions import environment, run
from tests.helpers.paths import ROOT

MAX_MB = 60
MAX_IMPORT_S = 1.0
OF_PIP = ("pip", "setuptools", "pkg_resources", "_distutils_hack")
SCRIPT = """
from syncnorm import Client, __version__, norm


def accuracy(name: str) -> float:
    with Client("http://127.0.0.1:8000") as client:
        reveal_type(client.job)
        return float(client.job(name)["progress"]["metrics"]["val/accuracy"])


reveal_type(__version__)
reveal_type(norm.convert)
accuracy(3)
"""


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the wheel and its base dependencies."""
    folder = tmp_path_factory.mktemp("client")
    found = environment(folder / "venv")
    pip = (str(found), "-m", "pip", "install", "--quiet", "-c", str(ROOT / "constraints.txt"))
    if (probe := run(*pip, "idna", cwd=folder, check=False)).returncode != 0:
        pytest.skip(f"pip reaches no package index: {probe.stderr[-200:]}")
    run(*pip, str(wheel), cwd=folder)
    return found


def test_client_is_imported_in_a_second_without_torch_or_the_service(python: Path, tmp_path: Path) -> None:
    code = (
        "import time; start = time.perf_counter(); from syncnorm import Client; took = time.perf_counter() - start\n"
        "import sys; print(took, *(name for name in ('torch', 'fastapi', 'ray', 'mlflow') if name in sys.modules))"
    )

    answers = [run(str(python), "-c", code, cwd=tmp_path).stdout.split() for _ in range(3)]

    assert {len(answer) for answer in answers} == {1}, answers
    assert min(float(took) for took, *_ in answers) < MAX_IMPORT_S


def test_installed_client_is_small(python: Path) -> None:
    folder = next(python.parents[1].glob("lib/python*/site-packages"))

    parts = [path for path in folder.iterdir() if not path.name.startswith(OF_PIP)]
    size = sum(file.stat().st_size for part in parts for file in [part, *part.rglob("*")] if file.is_file())

    assert 1e6 < size < MAX_MB * 1e6


def test_every_module_of_client_and_command_line_imports(python: Path, tmp_path: Path) -> None:
    code = (
        "import pkgutil, importlib, syncnorm.service.cli as a, syncnorm.service.client as b\n"
        "for room in (a, b):\n"
        "    for found in pkgutil.walk_packages(room.__path__, room.__name__ + '.'):\n"
        "        if not found.name.endswith(('.doctor', '.__main__')):\n"
        "            print(importlib.import_module(found.name).__name__)"
    )

    assert "syncnorm.service.cli.commands.jobs" in run(str(python), "-c", code, cwd=tmp_path).stdout


@pytest.mark.parametrize("program", [["bin/syncnorm"], ["bin/python", "-m", "syncnorm"]])
def test_program_runs_and_says_which_extra_a_command_needs(python: Path, program: list[str], tmp_path: Path) -> None:
    command = [str(python.parents[1] / program[0]), *program[1:]]

    version, serve, doctor, unreachable = (
        run(*command, *arguments, cwd=tmp_path, check=False)
        for arguments in (["version"], ["serve"], ["doctor"], ["ls"])
    )

    assert (version.returncode, version.stdout.strip()) == (0, syncnorm.__version__)
    assert serve.returncode == doctor.returncode == 2
    assert "`syncnorm serve` needs the extras server and worker: pip install 'syncnorm[server,worker]'" in serve.stderr
    assert "`syncnorm doctor` needs the extra server: pip install 'syncnorm[server]'" in doctor.stderr
    assert unreachable.returncode == 3


def test_layer_says_that_it_needs_torch(python: Path, tmp_path: Path) -> None:
    done = run(str(python), "-c", "from syncnorm.norm import SyncBatchNorm", cwd=tmp_path, check=False)
    kinds = run(str(python), "-c", "from syncnorm import norm; print(len(norm.kinds()))", cwd=tmp_path)

    assert (
        "syncnorm.norm.SyncBatchNorm needs torch, which is not installed: pip install 'syncnorm[norm]'" in done.stderr
    )
    assert int(kinds.stdout) > 10


def test_type_checker_of_a_user_sees_our_types(python: Path, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    mypy = (sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path), "--python-executable", str(python))

    lines = [line.partition(": ")[2] for line in run(*mypy, "script.py", cwd=tmp_path, check=False).stdout.splitlines()]

    assert lines[0] == 'note: Revealed type is "def (job_id: str) -> dict[str, Any]"'
    assert lines[1] == 'note: Revealed type is "str"'
    assert "Override" in lines[2]
    assert lines[3:-1] == ['error: Argument 1 to "accuracy" has incompatible type "int"; expected "str"  [arg-type]']
