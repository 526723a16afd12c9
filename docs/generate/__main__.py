"""`python -m docs.generate` writes the pages and pictures that come from the code. Run it after you changed a field, a
route, a verb or a docstring; a test compares them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from docs.generate.catalog import models_and_data
from docs.generate.commands import commands
from docs.generate.norm_names import norm_names
from docs.generate.performance import performance
from docs.generate.python_client import python_client
from docs.generate.routes import rest
from docs.generate.specs import job_spec, study_spec
from docs.generate.state_diagram import state_diagram

DOCS = Path(__file__).resolve().parents[1]
PAGES: dict[str, Callable[[], str]] = {
    "reference/job-spec.md": job_spec,
    "reference/study-spec.md": study_spec,
    "reference/models-and-data.md": models_and_data,
    "reference/rest.md": rest,
    "reference/commands.md": commands,
    "reference/python-client.md": python_client,
    "reference/norm.md": norm_names,
    "reference/performance.md": performance,
    "explanation/states-of-a-job.svg": state_diagram,
}


def stale() -> Iterator[tuple[Path, str]]:
    """Pages that are not what the code says, with what it says."""
    for name, page in PAGES.items():
        path, text = DOCS / name, page() + "\n"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            yield path, text


if __name__ == "__main__":
    for path, text in stale():
        path.write_text(text, encoding="utf-8")
        print(f"wrote docs/{path.relative_to(DOCS)}")
