"""A job file may name the folder of its code: it is uploaded, and the job has its digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from syncnorm.service.cli import main as cli
from syncnorm.service.cli import terminal
from syncnorm.service.cli.code_folder import pack
from tests.helpers.service.api import SPEC, api
from tests.service.cli.test_progress import client_of

Sn = Callable[..., Result]


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Sn, TestClient]]:
    with api(tmp_path, allow_code=True) as (http, _):
        monkeypatch.setattr(terminal, "Client", lambda: client_of(http))
        yield lambda *words, **more: CliRunner().invoke(cli.app, list(map(str, words)), **more), http


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """project/src holds the code, and project/jobs the file. The current folder is another one, with its own src."""
    for folder in ("project/src", "elsewhere/src"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "net.py").write_text(f"NAME = '{folder}'\n")
    (tmp_path / "project/jobs").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "project"


def digest(folder: Path) -> str:
    return f"sha256:{hashlib.sha256(pack(folder)).hexdigest()}"


def written(folder: Path, value: dict[str, Any]) -> Path:
    path = folder / "jobs/job.yaml"
    path.write_text(json.dumps(value))
    return path


def with_code(package: str) -> dict[str, Any]:
    return SPEC | {"code": {"package": package}}


def package_of(http: TestClient, done: Result) -> str:
    assert done.exit_code == 0, done.output
    found: str = http.get(f"/v1/jobs/{done.stdout.split()[0]}").json()["spec"]["code"]["package"]
    return found


def test_folder_of_a_file_is_seen_from_the_file(served: tuple[Sn, TestClient], project: Path) -> None:
    sn, http = served

    done = sn("submit", written(project, with_code("../src")))

    assert package_of(http, done) == digest(project / "src")
    assert digest(project / "src") in done.stderr  # what runs, for whoever looks for it later


def test_folder_of_a_setting_is_seen_from_the_current_folder(served: tuple[Sn, TestClient], project: Path) -> None:
    sn, http = served

    done = sn("submit", written(project, with_code("../src")), "--set", "code.package=src")

    assert package_of(http, done) == digest(Path("src")) != digest(project / "src")


@pytest.mark.usefixtures("project")
def test_folder_of_standard_input_is_seen_from_the_current_folder(served: tuple[Sn, TestClient]) -> None:
    sn, http = served

    done = sn("submit", "-", input=json.dumps(with_code("src")))

    assert package_of(http, done) == digest(Path("src"))


def test_digest_stays(served: tuple[Sn, TestClient], project: Path) -> None:
    sn, http = served
    package = sn("package", "put", project / "src").stdout.strip()

    assert package_of(http, sn("submit", written(project, with_code(package)))) == package == digest(project / "src")


def test_plan_and_study_take_a_folder_too(served: tuple[Sn, TestClient], project: Path) -> None:
    sn, http = served
    study = {"name": "both", "base": with_code("../src"), "grid": {"optimizer.lr": [0.1, 0.2]}}

    planned = sn("plan", written(project, with_code("../src")), "--json")
    of_study = sn("study", "plan", written(project, study), "--json")
    submitted = sn("study", "submit", project / "jobs/job.yaml")

    assert json.loads(planned.stdout)["spec"]["code"]["package"] == digest(project / "src")
    assert of_study.exit_code == 0, of_study.output
    assert submitted.exit_code == 0, submitted.output
    jobs = http.get("/v1/jobs").json()["items"]
    assert {http.get(f"/v1/jobs/{job['id']}").json()["spec"]["code"]["package"] for job in jobs} == {
        digest(project / "src")
    }


def test_path_that_is_no_folder_is_refused_before_anything_is_sent(
    served: tuple[Sn, TestClient], project: Path
) -> None:
    sn, http = served

    for named in ("../missing", "job.yaml"):
        done = sn("submit", written(project, with_code(named)))

        assert done.exit_code == 2
        assert "code.package must be a folder, or a digest" in done.stderr.replace("\n", " ")
        assert named in done.stderr.replace("\n", "")
    assert http.get("/v1/jobs").json()["items"] == []


@pytest.mark.parametrize("code", [None, [], {"package": None}, {"package": 3}, {"package": " "}, {}])
def test_anything_else_is_for_the_service_to_judge(served: tuple[Sn, TestClient], project: Path, code: Any) -> None:
    sn, _ = served

    done = sn("submit", written(project, SPEC | {"code": code}))

    assert done.exit_code == (0 if code is None else 2), done.output
    assert "must be a folder" not in done.stderr
