"""Jobs of modules for images, boxes and volumes. They need an environment of their own: `make test-vision`."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest

from syncnorm.service.cli.code_folder import pack
from syncnorm.service.client.client import Client
from tests.helpers.vision.on_ranks import HERE, facts_in
from tests.stack.conftest import client, finished, serving

__all__ = ["client", "serving"]

os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
NEEDS = ("torchvision", "monai", "nibabel", "pycocotools")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = [name for name in NEEDS if find_spec(name) is None]
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}: make test-vision"))


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Thirty images in folders by class."""
    from tests.helpers.vision.image_folder import write_folder

    write_folder(root := tmp_path_factory.mktemp("images"))
    return str(root)


@pytest.fixture(scope="session")
def package(client: Client) -> str:
    return str(client.put_package(pack(HERE))["package"])


Submitted = Callable[[dict[str, Any]], tuple[dict[str, Any], list[dict[str, Any]]]]
"""(spec) -> the job once it is over, and the facts of each rank."""


@pytest.fixture
def submitted(client: Client, package: str, tmp_path: Path) -> Submitted:
    """Runs a job through the service, with the modules uploaded as a package."""

    def run(document: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        folder = tmp_path / "facts"
        folder.mkdir(exist_ok=True)
        sent = document | {"code": {"package": package}, "env": {"FACTS": str(folder)}}
        job = finished(client, client.submit(sent)["id"])
        assert job["state"] != "failed" or job["reason"] == "user_error", _why(client, job)
        return job, facts_in(folder)

    return run


def _why(client: Client, job: dict[str, Any]) -> str:
    return "\n".join([str(job["message"]), *(line["text"] for line in client.logs(job["id"], tail=30))])


def artifact(job: dict[str, Any], path: str) -> bytes:
    """A file of the MLflow run of `job`."""
    uri, _, _ = str(job["mlflow"]["url"]).partition("/#/")
    params = {"path": path, "run_uuid": job["mlflow"]["run_id"]}
    return httpx.get(f"{uri}/get-artifact", params=params, timeout=30).raise_for_status().content


def run_of(job: dict[str, Any]) -> dict[str, Any]:
    """The MLflow run of `job`: metrics and artifact paths at the root and in images."""
    uri, _, _ = str(job["mlflow"]["url"]).partition("/#/")
    params = {"run_id": job["mlflow"]["run_id"]}
    with httpx.Client(base_url=f"{uri}/api/2.0/mlflow/", timeout=30) as rest:
        run = rest.get("runs/get", params=params).json()["run"]
        folders = [rest.get("artifacts/list", params=params | {"path": path}).json() for path in ("", "images")]
    return {
        "metrics": {one["key"]: one["value"] for one in run["data"]["metrics"]},
        "files": [file["path"] for folder in folders for file in folder.get("files", [])],
    }
