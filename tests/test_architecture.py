"""Who may import whom, and how the rooms are kept. A new edge is a decision: change the table and say why in the room.

Each rule is a function of a folder, so that a planted violation can show that it notices.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

PACKAGES = ("norm", "trainer", "service")
CONTRACT = ("syncnorm.trainer.contract", "syncnorm.trainer.storage", "syncnorm.trainer.errors")
"""What the service may see of the trainer. It knows neither torch nor Lightning."""
ALLOWED: dict[str, tuple[str, ...]] = {
    "norm": ("syncnorm.norm",),
    "trainer": ("syncnorm.norm", "syncnorm.trainer", "syncnorm.import_path"),
    "service": (
        "syncnorm.service",
        "syncnorm.norm.kind",
        "syncnorm.import_path",
        "syncnorm.trainer.forkserver",
        *CONTRACT,
    ),
    "trainer/forkserver": ("syncnorm.trainer.forkserver", "syncnorm.import_path"),
    "trainer/contract": ("syncnorm.norm.kind", *CONTRACT),
    "trainer/storage": CONTRACT,
}
MOST_FILES = 14
STRUCK = {"beside", "again", "lean", "asks", "pace", "hub", "gate", "place", "quiet", "alone", "trial", "keeper"}
"""Names that say nothing to a reader who knows the field."""
STRUCK_IN_NAMES = STRUCK - {"place"} | {"asked", "asking", "deed", "heard", "knock", "look", "seen", "told"}
"""The same of classes and functions: their names are the field's nouns and verbs."""
OPERATION_IDS = {"export_again"}
"""Names of routes, which generated clients show."""
SAME_NOUN = {"jobs", "exports", "studies", "secrets", "tokens", "audit", "packages"}
"""A resource has a file of its name in the API, on the command line and in the store, and means the same in each."""


def test_rooms_import_only_what_the_table_allows() -> None:
    assert [line for room, allowed in ALLOWED.items() for line in _forbidden(ROOT, room, allowed)] == []


def test_no_module_is_imported_by_an_old_name() -> None:
    assert list(_old_names(ROOT, (*PACKAGES, "tests", "benchmarks", "syncnorm"))) == []


def test_folders_of_a_package_form_no_circle() -> None:
    assert [circle for package in PACKAGES for circle in _circles(ROOT, package)] == []


def test_no_folder_is_crowded() -> None:
    assert [line for package in PACKAGES for line in _crowded(ROOT, package)] == []


def test_no_two_files_of_a_package_share_a_name() -> None:
    assert [line for package in PACKAGES for line in _shared_names(ROOT, package)] == []


def test_files_are_named_by_nouns_of_the_field() -> None:
    assert [str(path) for package in PACKAGES for path in _files(ROOT, package) if path.stem in STRUCK] == []


def test_classes_and_functions_are_named_by_words_of_the_field() -> None:
    assert [line for package in PACKAGES for line in _struck_names(ROOT, package)] == []


def test_importing_the_service_loads_neither_torch_nor_lightning() -> None:
    code = "import syncnorm.service.api.app, sys; print([m for m in ('torch', 'lightning', 'ray') if m in sys.modules])"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)

    assert done.stdout.strip() == "[]"


def test_the_client_loads_neither_the_service_nor_torch() -> None:
    code = (
        "from syncnorm import Client; import sys; print([m for m in ('torch', 'fastapi', 'ray') if m in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)

    assert done.stdout.strip() == "[]"


# Each rule, shown to notice


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    for name in ("service/api", "service/store", "trainer/contract"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "service/api/app.py").write_text("from syncnorm.service.store import rows\n")
    (tmp_path / "service/store/rows.py").write_text("")
    return tmp_path


def test_planted_import_is_noticed(planted: Path) -> None:
    (planted / "service/api/app.py").write_text("from syncnorm.trainer.worker import fit\n")
    (planted / "trainer/contract/spec.py").write_text("import norm\n")

    assert list(_forbidden(planted, "service", ALLOWED["service"])) == [
        "service/api/app.py imports syncnorm.trainer.worker.fit"
    ]
    assert list(_old_names(planted, ("trainer",))) == ["trainer/contract/spec.py imports norm"]


def test_planted_circle_is_noticed(planted: Path) -> None:
    assert list(_circles(planted, "service")) == []
    (planted / "service/store/rows.py").write_text("from syncnorm.service.api import app\n")

    assert list(_circles(planted, "service")) == ["service/api <-> service/store"]


def test_planted_crowd_and_planted_twins_are_noticed(planted: Path) -> None:
    for number in range(MOST_FILES):
        (planted / f"service/api/file_{number}.py").write_text("")
    (planted / "service/store/app.py").write_text("")

    assert list(_crowded(planted, "service")) == ["service/api holds 15 files"]
    assert list(_shared_names(planted, "service")) == ["service: two files named app.py"]


def test_planted_idiom_is_noticed(planted: Path) -> None:
    code = "class SeenJob:\n    def ask_again(self): ...\n\ndef observe(): ...\n"
    (planted / "service/api/app.py").write_text(code)

    assert list(_struck_names(planted, "service")) == ["service/api/app.py: SeenJob", "service/api/app.py: ask_again"]


# The rules


def _files(root: Path, package: str) -> Iterator[Path]:
    for path in sorted((root / package).rglob("*.py")):
        if "versions" not in path.parts:  # migrations are numbered
            yield path.relative_to(root)


def _imports(root: Path, path: Path) -> Iterator[str]:
    """Full names of what a file imports: `from a.b import c` is a.b.c."""
    for node in ast.walk(ast.parse((root / path).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _forbidden(root: Path, room: str, allowed: tuple[str, ...]) -> Iterator[str]:
    for path in _files(root, room):
        for name in _imports(root, path):
            of_ours = name.split(".")[0] == "syncnorm" and name != "syncnorm.__version__"
            if of_ours and not any(_is_under(name, edge) for edge in allowed):
                yield f"{path} imports {name}"


def _is_under(name: str, edge: str) -> bool:
    return name == edge or (edge != "syncnorm" and name.startswith(f"{edge}."))


def _old_names(root: Path, folders: tuple[str, ...]) -> Iterator[str]:
    for folder in folders:
        for path in sorted((root / folder).rglob("*.py")):
            for name in _imports(root, path.relative_to(root)):
                if name.split(".")[0] in PACKAGES:
                    yield f"{path.relative_to(root)} imports {name}"


def _room_of(root: Path, name: str) -> str | None:
    """The folder of a module; of a folder that has folders of its own, the file itself."""
    parts = name.split(".")[1:]
    for end in range(len(parts), 0, -1):
        path = Path(*parts[:end])
        if (root / path.with_suffix(".py")).is_file():
            return _node(root, path.with_suffix(".py"))
    return None


def _node(root: Path, path: Path) -> str:
    has_rooms = any(child.is_dir() and any(child.glob("*.py")) for child in (root / path.parent).iterdir())
    return str(path if has_rooms else path.parent)


def _circles(root: Path, package: str) -> Iterator[str]:
    edges: dict[str, set[str]] = defaultdict(set)
    for path in _files(root, package):
        if path.name == "__init__.py":
            continue
        node = _node(root, path)
        edges[node] |= {room for name in _imports(root, path) if (room := _room_of(root, name)) not in (None, node)}  # type: ignore[misc]
    reached = {node: _reachable(edges, node) for node in list(edges)}
    for node, others in reached.items():
        for other in sorted(others):
            if node < other and node in reached.get(other, set()) and node.split("/")[0] == package:
                yield f"{node} <-> {other}"


def _reachable(edges: dict[str, set[str]], start: str) -> set[str]:
    found, open_ = set[str](), [start]
    while open_:
        for room in edges.get(open_.pop(), set()):
            if room not in found:
                found.add(room)
                open_.append(room)
    return found


def _crowded(root: Path, package: str) -> Iterator[str]:
    counts = Counter(str(path.parent) for path in _files(root, package) if not path.name.startswith("__"))
    yield from (f"{folder} holds {count} files" for folder, count in sorted(counts.items()) if count > MOST_FILES)


def _struck_names(root: Path, package: str) -> Iterator[str]:
    for path in _files(root, package):
        for node in ast.walk(ast.parse((root / path).read_text())):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                words = {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", node.name)}
                if words & STRUCK_IN_NAMES and node.name not in OPERATION_IDS:
                    yield f"{path}: {node.name}"


def _shared_names(root: Path, package: str) -> Iterator[str]:
    counts = Counter(path.name for path in _files(root, package) if not path.name.startswith("__"))
    yield from (
        f"{package}: two files named {name}"
        for name, count in sorted(counts.items())
        if count > 1 and name.removesuffix(".py") not in SAME_NOUN
    )
