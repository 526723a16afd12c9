"""Jobs of the modules and data in `own_modules`."""

from __future__ import annotations

from typing import Any

MODULES = "tests.helpers.trainer.own_modules"


def job(name: str, *, data: str = "Points", workers: int = 1, **parts: Any) -> dict[str, Any]:
    return {
        "name": "own",
        "model": {"class_path": f"{MODULES}.{name}"},
        "data": {"class_path": f"{MODULES}.{data}"},
        "norm": {"kind": "batch"},
        "train": {"epochs": 2},
        "resources": {"workers": workers},
        **parts,
    }
