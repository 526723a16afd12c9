"""Each part imports what its extra brings, and no more: read from the files, so that a late import counts as well."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
COMES_WITH = {
    "starlette": "fastapi",
    "anyio": "fastapi",
    "markupsafe": "jinja2",
    "pydantic-core": "pydantic",
    "triton": "torch",
    "tqdm": "lightning",
    "scipy": "scikit-learn",
}
"""What another library brings, which can't be without it."""
OFFERED = {"gcsfs", "aiohttp", "nibabel", "torchvision"}
"""For buckets, volumes and transforms of boxes; whoever names one without the extra is told so."""
OF_A_HOST = {"service/cli/demo.py", "service/cli/doctor.py"}
"""Of the command line, what starts or examines a service on its own host."""

EMBEDDED = {"service/local/ray_head.py"}
"""Programs of `syncnorm serve` without a cluster, which takes both extras."""


@pytest.mark.parametrize(("room", "extras"), [("norm", ["norm"]), ("trainer", ["worker"]), ("service", ["server"])])
def test_room_imports_what_its_extra_brings(room: str, extras: list[str]) -> None:
    assert list(_undeclared(ROOT, _files(room) - EMBEDDED, extras)) == []


def test_embedded_programs_import_what_both_extras_bring() -> None:
    assert list(_undeclared(ROOT, EMBEDDED, ["server", "worker"])) == []


def test_client_and_command_line_import_what_the_base_brings() -> None:
    entries = {*_files("service/client"), *_files("service/cli")} - OF_A_HOST

    assert list(_undeclared(ROOT, _reached(entries), [])) == []


def test_undeclared_library_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "late.py").write_text("def f():\n    import pytest\n")

    assert list(_undeclared(tmp_path, ["late.py"], ["norm", "worker", "server"])) == ["late.py imports pytest"]


def _undeclared(root: Path, files: Iterable[str], extras: Iterable[str]) -> Iterator[str]:
    declared = {"syncnorm", *OFFERED, *map(_name, PROJECT["dependencies"]), *_of(extras)}
    known = packages_distributions()
    for file in sorted(files):
        for library in sorted({name.partition(".")[0] for name in _imports(root / file)} - sys.stdlib_module_names):
            brought = {_normal(one) for one in known.get(library, [library])}
            if not {COMES_WITH.get(one, one) for one in brought} & declared:
                yield f"{file} imports {library}"


def _of(extras: Iterable[str]) -> Iterator[str]:
    for extra in extras:
        for requirement in PROJECT["optional-dependencies"][extra]:
            ours = re.fullmatch(r"syncnorm\[(.*)\]", requirement)
            yield from _of(ours[1].split(",")) if ours else [_name(requirement)]


def _name(requirement: str) -> str:
    return _normal(re.split(r"[\[<>=]", requirement)[0])


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _files(folder: str) -> set[str]:
    return {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("*.py")}


def _imports(path: Path) -> set[str]:
    """Full names, also of what is imported late; but for `syncnorm serve` and `doctor`, whose extra is asked for."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if path.name == "host.py" else list(ast.walk(tree))
    return {
        f"{node.module}.{alias.name}" if isinstance(node, ast.ImportFrom) else alias.name
        for node in nodes
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }


def _reached(entries: set[str]) -> set[str]:
    """Files that importing `entries` imports."""
    found, open_ = set(entries), list(entries)
    while open_:
        for name in _imports(ROOT / open_.pop()):
            for file in _file_of(name):
                if file not in found:
                    found.add(file)
                    open_.append(file)
    return found


def _file_of(name: str) -> Iterator[str]:
    """The modules that `name` may be, with the packages around it."""
    parts = name.split(".")[1:] if name.startswith("syncnorm.") else []
    for end in range(1, len(parts) + 1):
        stem = "/".join(parts[:end])
        yield from (file for file in (f"{stem}.py", f"{stem}/__init__.py") if (ROOT / file).is_file())
