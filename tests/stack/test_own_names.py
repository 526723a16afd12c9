"""A user's code may be named as our folders are: it is what its job imports, and our folders are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from syncnorm.service.cli.code_folder import pack
from syncnorm.service.client.client import Client, ProblemError
from tests.helpers import own_names
from tests.stack.conftest import finished

pytestmark = [pytest.mark.stack, pytest.mark.timeout(300)]


@pytest.fixture
def package(client: Client, tmp_path: Path) -> str:
    return str(client.put_package(own_names.archive(tmp_path))["package"])


def test_plan_of_a_model_named_as_ours_shows_its_layers(client: Client, package: str) -> None:
    plan = client.plan(own_names.spec(package, workers=2))

    assert [finding for finding in plan["findings"] if finding["severity"] == "error"] == []
    assert [(one["path"], one["from"]) for one in plan["conversion"]] == [("layers.1", "BatchNorm2d")]


@pytest.mark.parametrize("workers", [1, 2])  # in the driver's process, and in workers of Ray Train
def test_job_with_modules_named_as_ours_trains_with_its_own_and_is_exported(
    client: Client, package: str, workers: int
) -> None:
    job = finished(client, client.submit(own_names.spec(package, workers))["id"])

    lines = [line["text"] for line in client.logs(job["id"], limit=1000)]
    assert job["state"] == "succeeded", (job["message"], lines)
    assert job["model"]["certificate"]["passed"] is True
    assert {line for line in lines if line.startswith("imported")} == {
        "imported norm a user",
        "imported service a user",
        "imported tests.shapes a user",
    }


def test_package_that_would_hide_syncnorm_is_refused_by_name(client: Client, tmp_path: Path) -> None:
    (tmp_path / "syncnorm.py").write_text("")

    with pytest.raises(ProblemError, match=r"must not hold a module named syncnorm, got 'syncnorm.py'"):
        client.put_package(pack(tmp_path))
