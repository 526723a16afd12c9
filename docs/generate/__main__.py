"""`python -m docs.generate` writes the reference pages that come from the code. Run it after you changed a field, a
route, a verb or a docstring; a test compares them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from docs.generate.catalog import models_and_data
from docs.generate.commands import commands
from docs.generate.norm_names import norm_names
from docs.generate.python_client import python_client
from docs.generate.routes import rest
from docs.generate.specs import job_spec, study_spec

REFERENCE = Path(__file__).resolve().parents[1] / "reference"
PAGES: dict[str, Callable[[], str]] = {
    "job-spec.md": job_spec,
    "study-spec.md": study_spec,
    "models-and-data.md": models_and_data,
    "rest.md": rest,
    "commands.md": commands,
    "python-client.md": python_client,
    "norm.md": norm_names,
}


def stale() -> Iterator[tuple[Path, str]]:
    """Pages that are not what the code says, with what it says."""
    for name, page in PAGES.items():
        path, text = REFERENCE / name, page() + "\n"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            yield path, text


if __name__ == "__main__":
    for path, text in stale():
        path.write_text(text, encoding="utf-8")
        print(f"wrote docs/reference/{path.name}")
