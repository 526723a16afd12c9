"""The reference is complete and fresh: what a user can name is in it, and what it names exists."""

from __future__ import annotations

import ast
import inspect
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from fastapi.routing import iter_route_contexts
from pydantic import BaseModel

from docs.generate.__main__ import PAGES, stale
from syncnorm import norm
from syncnorm.service.cli.main import app
from syncnorm.service.client.client import Client
from syncnorm.service.jobs.job import JobState
from syncnorm.service.jobs.study_spec import StudySpec
from syncnorm.service.scheduling.explanation import CODES
from syncnorm.service.store.tables.profiles import PROFILE_REQUESTED
from syncnorm.service.store.tables.stacks import STACKS_REQUESTED
from syncnorm.trainer.contract.catalog.names import DATASETS, MODELS
from syncnorm.trainer.contract.failure import ADVICE, SKIPPED, ExportReason, FailureReason
from syncnorm.trainer.contract.protocol import WORKER_EVENTS
from syncnorm.trainer.contract.spec import JobSpec
from syncnorm.trainer.reporting import metric_spool
from tests.helpers.field_docs import nested_models
from tests.helpers.paths import ROOT
from tests.helpers.service.api import api

REFERENCE = ROOT / "docs" / "reference"


def text(page: str) -> str:
    return (REFERENCE / page).read_text(encoding="utf-8")


def first_cells(page: str) -> list[str]:
    """The names in the first cells of all tables of a page."""
    rows = re.findall(r"^\| (`.+?) \|", text(page), re.MULTILINE)
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row)]


def rows(page: str, heading: str) -> dict[str, list[str]]:
    """The table under a heading, by its first cells."""
    section = text(page).split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| `")]
    return {cells[0].strip("`"): cells[1:] for cells in lines}


def test_generated_pages_are_what_the_code_says() -> None:
    assert [path.name for path, _ in stale()] == [], "run `python -m docs.generate`"
    assert {path.name for path in REFERENCE.glob("*.md") if "Written by" in path.read_text()} == {
        Path(name).name for name in PAGES if name.endswith(".md")
    }


def test_change_of_the_code_makes_a_page_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Client.job, "__doc__", "Another sentence.")

    assert [path.name for path, _ in stale()] == ["python-client.md"]


# The job spec


def fields(model: type[BaseModel]) -> Iterator[tuple[str, str, Any]]:
    for one in nested_models(model):
        for name, field in one.model_fields.items():
            yield one.__name__, field.alias or name, field


@pytest.mark.parametrize(("model", "page"), [(JobSpec, "job-spec.md"), (StudySpec, "study-spec.md")])
def test_page_has_every_field_of_a_spec_with_its_words(model: type[BaseModel], page: str) -> None:
    sections: dict[str, list[str]] = defaultdict(list)
    for path, words_of_it in re.findall(r"^##+ `([\w.\[\]]+)`\n(.*?)(?=^##|\Z)", text(page), re.MULTILINE | re.DOTALL):
        sections[path.rpartition(".")[2]].append(letters(words_of_it))

    missing = [
        f"{owner}.{name}"
        for owner, name, field in fields(model)
        if not any(letters(field.description) in one for one in sections[name])
    ]

    assert missing == []


def letters(text: str | None) -> str:
    """The letters of a text, without how it is set."""
    plain = re.sub(r"docs/reference/|\[[\w-]+\.md\]|\\", "", text or "")
    return re.sub(r"[\W_]+", "", plain)


def test_page_has_every_model_and_data_set_with_its_arguments() -> None:
    sections = {one.partition("`")[0]: one for one in text("models-and-data.md").split("\n### `")[1:]}
    wanted = {name: set(one.model_fields) for name, one in {**MODELS, **DATASETS}.items()}

    assert {name: set(re.findall(r"^\| `(\w+)`", sections[name], re.MULTILINE)) for name in wanted} == wanted


# REST, the command line, Python


def test_page_has_every_route_that_the_application_answers(tmp_path: Path) -> None:
    with api(tmp_path) as (client, _):
        routes = list(iter_route_contexts(client.app.routes))  # type: ignore[attr-defined]
    public = [one for one in routes if getattr(one, "include_in_schema", False)]
    answered = {(m, one.path.replace(":path}", "}")) for one in public for m in one.methods - {"HEAD"}}
    headings = set(re.findall(r"^### ([A-Z]+) `(.+)`$", text("rest.md"), re.MULTILINE))

    assert headings == answered
    assert len(headings) > 40


def verbs(group: Any, prefix: str = "syncnorm") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        found = f"{prefix} {name}"
        yield from verbs(command, found) if hasattr(command, "commands") else [(found, command)]


def test_page_has_every_verb_with_its_options() -> None:
    sections = {one.partition("`")[0]: one for one in text("commands.md").split("\n## `")[1:]}
    found = dict(verbs(typer.main.get_command(app)))

    assert set(sections) == set(found)
    missing = [
        f"{verb} {option}"
        for verb, command in found.items()
        for one in command.params
        for option in one.opts
        if option.startswith("-") and not re.search(rf"`{option}[ `]", sections[verb])
    ]
    assert missing == []


def test_page_has_every_method_of_the_client() -> None:
    headings = set(re.findall(r"^### `(\w+)`", text("python-client.md"), re.MULTILINE))

    assert {name for name in dir(Client) if not name.startswith("_")} <= headings
    assert [name for name, found in vars(Client).items() if name[0] != "_" and not inspect.getdoc(found)] == []


def test_page_has_every_public_name_of_norm() -> None:
    headings = set(re.findall(r"^### `(\w+)`", text("norm.md"), re.MULTILINE))

    assert headings == set(norm.__all__)


# Reasons, events, metrics


def test_page_has_every_reason_with_whose_turn_it_is() -> None:
    found = {name: (cells[0], cells[1]) for name, cells in rows("reasons.md", "Why a job failed").items()}

    assert found == {one.value: (ADVICE[one].turn, "yes" if ADVICE[one].retryable else "no") for one in FailureReason}


def test_page_has_every_reason_of_an_export_and_those_that_skip_it_last() -> None:
    found = list(rows("reasons.md", "Why there is no certified model"))

    assert set(found) == set(ExportReason)
    assert set(found[2:]) == SKIPPED


def test_page_has_every_code_of_explain() -> None:
    assert sorted(rows("reasons.md", "Why a job waits, runs or stopped")) == sorted(CODES)


def kinds_of_events(root: Path) -> Iterator[str]:
    """What is given as the kind of an event, in `NewEvent(kind, …)` and in calls of `_event(export, kind, …)`."""
    for path in sorted((root / "service").rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = call.func.id if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) else ""
            if name in ("NewEvent", "_event"):
                assert isinstance(call, ast.Call)
                yield from (one.value for one in call.args[:2] if isinstance(one, ast.Constant) and _is_name(one.value))


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(re.fullmatch(r"[a-z_]+", value))


def test_page_has_every_kind_of_event() -> None:
    from_requests = {"cancel_requested", "pause_requested", STACKS_REQUESTED, PROFILE_REQUESTED}
    of_the_code = {*kinds_of_events(ROOT), *JobState, *WORKER_EVENTS, *from_requests, "user.NAME"}

    assert "export_queued" in of_the_code
    assert sorted(first_cells("events.md")) == sorted(map(str, of_the_code))


def prometheus_names(root: Path) -> Iterator[str]:
    for path in sorted((root / "service" / "telemetry").rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = call.func.id if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) else ""
            if isinstance(call, ast.Call) and re.fullmatch(r"(Counter|Gauge|Histogram)(MetricFamily)?", name):
                assert isinstance(call.args[0], ast.Constant)
                yield f"{call.args[0].value}{'_total' if name.startswith('Counter') else ''}"


def test_page_has_every_metric_of_the_service() -> None:
    listed = [name for name in first_cells("metrics.md") if name.startswith("syncnorm_")]

    assert sorted(listed) == sorted(prometheus_names(ROOT))
    assert len(listed) > 20


def test_page_has_every_metric_that_a_job_writes_by_itself() -> None:
    constants = {
        value
        for value in vars(metric_spool).values()
        if isinstance(value, str) and re.fullmatch(r"[a-z]+(/\w+)?", value)
    }
    listed = text("metrics.md")
    wanted = {*constants, *(name for names in metric_spool.DIAGNOSTIC_METRICS.values() for name in names)}

    assert {"train/loss", "lr"} <= constants
    assert [name for name in sorted(wanted) if f"`{name}`" not in listed] == []
