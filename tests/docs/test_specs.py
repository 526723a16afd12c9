"""Every YAML block of a page is read: job specs, parts of them and studies are validated as the service does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from syncnorm.service.cli.job_files.job_file import code_folder_of
from syncnorm.service.cli.job_files.yaml_reader import parse
from syncnorm.service.jobs.study_spec import StudySpec
from syncnorm.trainer.contract.spec import JobSpec
from tests.docs.test_pages import PAGES
from tests.helpers.paths import ROOT

NOT_SPECS = {"scrape_configs", "rule_files", "services", "match"}
"""First keys of blocks for other programs, and of a single rule."""
PLACEHOLDER = f"sha256:{'0' * 64}"
BASE: dict[str, Any] = {
    "name": "job",
    "model": {"name": "resnet"},
    "data": {"name": "digits", "batch_size": 2},
    "resources": {"workers": 8},
}


def blocks(text: str) -> Iterator[str]:
    """YAML of a page: its blocks, and files that its commands write. A digest that is left out is filled in."""
    for block in re.findall(r"^ *```yaml\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL):
        yield block.replace("sha256:…", PLACEHOLDER)
    yield from re.findall(r"cat > \S+\.yaml <<'END'\n(.*?)^END$", text, re.MULTILINE | re.DOTALL)


def problems(block: str) -> Iterator[str]:
    """Why a block is no spec, nor a part of one."""
    found = parse(block, "the block")
    keys = set(found) if isinstance(found, dict) else set()
    if keys & NOT_SPECS:
        return
    if "grid" in keys:
        yield from refusals(StudySpec, {"name": "study", **found})
    elif keys and keys <= set(JobSpec.model_fields):
        yield from refusals(JobSpec, whole(found))
    else:
        yield f"neither a job spec nor a study: {sorted(keys)}"


def whole(part: dict[str, Any]) -> dict[str, Any]:
    """A part of a job spec with the fields that every job needs."""
    model = part.get("model", {})
    named = model if {"name", "class_path"} & set(model) else {**BASE["model"], **model}
    data = {"batch_size": 2, **part["data"]} if "name" in part.get("data", {}) else part.get("data", BASE["data"])
    uploaded = {"code": {**part["code"], "package": PLACEHOLDER}} if code_folder_of(part) else {}
    return {**BASE, **part, "model": named, "data": data, **uploaded}


def refusals(model: type[BaseModel], spec: dict[str, Any]) -> Iterator[str]:
    try:
        model.model_validate(spec)
    except ValueError as error:
        yield str(error)


@pytest.mark.parametrize("page", [page for page in PAGES if "CHANGELOG" not in page.name], ids=str)
def test_specs_of_a_page_are_accepted(page: Path) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")

    assert [problem for block in blocks(text) for problem in problems(block)] == []


@pytest.mark.parametrize(
    "mistake",
    [
        "train: {epoch: 3}",
        "nrom: {kind: group}",
        "train: {epochs: 0}",
        "name: s\ngrid: {norm.kind: [batch]}\nseed: [0]",
    ],
)
def test_mistake_in_a_block_is_noticed(mistake: str) -> None:
    (block,) = blocks(f"# Page\n\n```yaml\n{mistake}\n```\n")

    assert list(problems(block))


def test_pages_hold_many_specs() -> None:
    found = [block for page in PAGES for block in blocks((ROOT / page).read_text(encoding="utf-8"))]

    assert len(found) > 40
