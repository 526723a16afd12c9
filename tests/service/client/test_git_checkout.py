"""A submitted job says which file and commit it came from, and no password."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from syncnorm.service.cli.job_files.job_file import load_study, load_with_source
from syncnorm.service.client.git_checkout import source_of


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    def git(*arguments: str) -> None:
        who = ("-c", "user.name=ann", "-c", "user.email=ann@host")
        subprocess.run(["git", "-C", str(tmp_path), *who, *arguments], check=True, capture_output=True)

    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "one.yaml").write_text("name: one\n")
    git("init", "--initial-branch=nets")
    git("add", ".")
    git("commit", "-m", "One job")
    git("remote", "add", "origin", "https://ann:secret@host/team/nets.git")
    return tmp_path


def test_job_file_in_a_checkout_has_its_commit(checkout: Path) -> None:
    found = source_of(checkout / "jobs" / "one.yaml")

    assert found is not None
    commit = subprocess.run(
        ["git", "-C", str(checkout), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout
    assert found == {
        "name": "jobs/one.yaml",
        "repository": "https://host/team/nets.git",
        "commit": commit.strip(),
        "branch": "nets",
    }


def test_changed_file_is_told(checkout: Path) -> None:
    (checkout / "jobs" / "one.yaml").write_text("name: two\n")

    found = source_of(checkout / "jobs" / "one.yaml")

    assert found is not None
    assert found["dirty"] is True


def test_standard_input_counts_as_the_folder(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.chdir(checkout)
    inside = source_of(Path("-"))
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))

    assert inside is not None
    assert (inside["branch"], "name" in inside) == ("nets", False)
    assert source_of(Path("-")) is None


def test_without_git_only_the_file_is_known(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")

    assert source_of(checkout / "jobs" / "one.yaml") == {"name": "one.yaml"}


def test_source_of_the_job_file_stands(checkout: Path) -> None:
    file = checkout / "jobs" / "one.yaml"

    assert load_with_source(file)["source"]["branch"] == "nets"
    file.write_text("name: one\nsource: {name: ci}\n")
    assert load_with_source(file)["source"] == {"name": "ci"}
    file.write_text("name: one\nsource: null\n")
    assert load_with_source(file)["source"] is None


def test_jobs_of_a_study_have_the_checkout_of_its_file(checkout: Path) -> None:
    file = checkout / "study.yaml"
    file.write_text("{name: s, base: {name: j}, grid: {seed: [0]}}")

    study = load_study(file)

    assert study["base"]["source"]["name"] == "study.yaml"
    assert "source" not in study
    assert load_study(_written(file, "{name: s, base: {source: {name: ci}}}"))["base"]["source"] == {"name": "ci"}
    assert load_study(_written(file, "{name: s, base: 3}")) == {"name": "s", "base": 3}


def _written(file: Path, text: str) -> Path:
    file.write_text(text)
    return file
