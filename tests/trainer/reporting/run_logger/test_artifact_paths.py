"""Names of users never lead out of the run's artifacts, fit every file system, and don't meet."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest
from mlflow.utils.uri import validate_path_is_safe

from syncnorm.trainer.reporting.run_logger.artifact_paths import artifact_path, image_path, safe_path, step_path

KEPT = ["a.txt", "plots/ROC curve.png", "images/val_3/x.png", ".hydra/config.yaml", "Übersicht/图.png"]
ODD = [
    "../../etc/passwd",
    "/etc/passwd",
    "a/../../b",
    "C:\\windows\\x.png",
    "a//b",
    "",
    "/",
    "..",
    "x\x00y\n.png",
    "file:///etc/passwd",
    "s3://bucket/key",
    "a?b#c%2e%2e/%2e%2e",
    "x" * 400 + ".png",
    "图" * 300 + ".png",
    "/".join("ab" * 60 for _ in range(40)),
    "a/b/c/d/e/f/g/h/i/j/k.png",
    "\ud800.png",
    ".tmp-x.png",
    " spaces ",
]


@pytest.mark.parametrize("name", KEPT)
def test_ordinary_name_is_kept(name: str) -> None:
    assert artifact_path(name) == safe_path(name) == name


@pytest.mark.parametrize("name", ["spec.yaml", "norm/x.png", "export/model.onnx", "logged/a", "model/MLmodel"])
def test_name_of_the_job_s_own_is_moved_aside(name: str) -> None:
    assert artifact_path(name) == f"logged/{name}"


@pytest.mark.parametrize("name", ODD)
def test_odd_name_becomes_a_file_that_can_be_written(name: str, tmp_path: Path) -> None:
    for path in (artifact_path(name), f"{image_path(name, 3)}+compressed.webp", step_path("text", name, 3, ".txt")):
        assert validate_path_is_safe(path) == path
        file = tmp_path / path
        assert ".." not in PurePosixPath(path).parts
        assert not any(part.startswith(".tmp-") for part in PurePosixPath(path).parts)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("x")
        assert file.resolve().is_relative_to(tmp_path.resolve())


def test_different_names_never_share_a_file() -> None:
    names = ["a?b.png", "a*b.png", "a_b.png", "/a_b.png", "../a_b.png", "a b.png", " a b.png"]

    assert len({artifact_path(name) for name in names}) == len(names)
    assert len({image_path(name, 1) for name in names}) == len(names)


def test_end_of_a_name_survives() -> None:
    assert all(artifact_path(name).endswith(".png") for name in ODD if name.endswith(".png"))
