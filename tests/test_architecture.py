"""Who may import whom. A new edge is a decision: change the table and say why in the room's README."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Modules of trainer that know neither torch nor Lightning: what the service may see.
SPEC_SIDE = {
    "trainer.spec",
    "trainer.bounds",
    "trainer.result_reader",
    "trainer.text",
    "trainer.spec_reader",
    "trainer.unknown_field",
    "trainer.words",
    "trainer.plan",
    "trainer.norm_choice",
    "trainer.maps",
    "trainer.failure",
    "trainer.catalog",
    "trainer.attempt",
    "trainer.host_report",
    "trainer.files",
    "trainer.mlflow_names",
    "trainer.storage",
    "trainer.bucket",
    "trainer.filesystems",
    "trainer.storage_faults",
}

ALLOWED: dict[str, set[str]] = {
    "norm": {"norm"},
    "trainer": {"norm", "trainer"},
    "service": {"service", "norm.traits"} | SPEC_SIDE,
}


def test_rooms_import_only_what_the_table_allows() -> None:
    broken = [
        f"{path.relative_to(ROOT)} imports {name}"
        for room, allowed in ALLOWED.items()
        for path, name in _imports_of_ours(room)
        if not any(name == edge or name.startswith(edge + ".") for edge in allowed)
    ]

    assert broken == []


def test_spec_side_of_the_trainer_knows_nothing_of_the_rest() -> None:
    allowed = SPEC_SIDE | {"norm.traits"}
    broken = [
        f"{path.name} imports {name}"
        for path, name in _imports_of_ours("trainer")
        if f"trainer.{path.stem}" in SPEC_SIDE and path.parent.name == "trainer" and name not in allowed
    ]

    assert broken == []


def test_importing_the_service_loads_neither_torch_nor_lightning() -> None:
    code = "import service.app, sys; print([m for m in ('torch', 'lightning', 'ray', 'mlflow') if m in sys.modules])"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)

    assert done.stdout.strip() == "[]"


def _imports_of_ours(room: str) -> Iterator[tuple[Path, str]]:
    for path in sorted((ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                names = [node.module]
                if node.module in ALLOWED:
                    names = [f"{node.module}.{alias.name}" for alias in node.names]
            for name in names:
                if name.split(".")[0] in ALLOWED:
                    yield path, name
