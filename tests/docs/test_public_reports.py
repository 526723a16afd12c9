"""The page of public reports lists each test with the links above it, and nothing else."""

from __future__ import annotations

import re
from itertools import chain

from tests.helpers.paths import ROOT

PAGE = ROOT / "docs" / "explanation" / "public-reports.md"
FILES = sorted(chain.from_iterable((ROOT / "tests" / room / "public").glob("test_*.py") for room in ("", "vision")))
PROJECTS = (
    *("pytorch/pytorch", "pytorch/vision", "Lightning-AI/pytorch-lightning", "Lightning-AI/torchmetrics"),
    *("facebookresearch/detectron2", "huggingface/pytorch-image-models", "Project-MONAI/MONAI", "MIC-DKFZ/nnUNet"),
    *("ultralytics/ultralytics", "qubvel-org/segmentation_models.pytorch", "mlflow/mlflow", "ray-project/ray"),
    *("skypilot-org/skypilot", "dstackai/dstack", "determined-ai/determined", "kubeflow/trainer"),
)


def linked_tests() -> dict[str, set[str]]:
    """The links above each test."""
    found: dict[str, set[str]] = {}
    for file in FILES:
        for block in re.finditer(
            r"((?:^# https.*\n)*)(?:^@.*(?:\n .*|\n\).*)*\n)*^def (test_\w+)", file.read_text(), re.M
        ):
            assert block[2] not in found, f"{block[2]} is there twice"
            found[block[2]] = set(re.findall(r"^# (https\S+)", block[1], re.MULTILINE))
    return found


def rows() -> dict[str, set[str]]:
    """The links in the first column of each test's row."""
    found: dict[str, set[str]] = {}
    for row in re.findall(r"^\| (\[.*) \|$", PAGE.read_text(), re.MULTILINE):
        first, *_, last = row.split(" | ")
        assert last not in found, f"{last} is listed twice"
        found[last.strip("`")] = set(re.findall(r"\((https\S+)\)", first))
    return found


def test_page_lists_each_test_with_its_reports() -> None:
    assert rows() == linked_tests()


def test_each_test_has_the_number_of_its_report() -> None:
    for name, links in linked_tests().items():
        assert any(f"_{link.rpartition('/')[2]}_" in name for link in links), name


def test_there_are_reports_of_each_project() -> None:
    links = set().union(*linked_tests().values())

    assert len(linked_tests()) >= 40
    for project in PROJECTS:
        assert any(f"github.com/{project}/" in link for link in links), project
