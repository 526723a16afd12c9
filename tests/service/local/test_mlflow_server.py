"""MLflow as the service and the composition start it, under the name that browsers know it by."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from syncnorm.service.confinement import environment_of_mlflow
from syncnorm.service.local.free_ports import free_port
from syncnorm.service.local.programs import local_mlflow

pytestmark = pytest.mark.timeout(300)

PUBLIC = {"Host": "mlflow.example.org", "Origin": "https://mlflow.example.org"}
ADMIN = ("admin", "correct horse battery")
AUTH_INI = """[mlflow]
default_permission = READ
database_uri = sqlite:///{folder}/auth.db
admin_username = admin
admin_password = {password}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
"""


def wait_for(url: str, timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            httpx.get(f"{url}/health").raise_for_status()
            return
        except httpx.HTTPError:
            time.sleep(0.2)
    pytest.fail(f"MLflow does not answer at {url}")


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("embedded")
    with local_mlflow(folder, preferred_port=0, public_url=PUBLIC["Origin"]) as (_, url):
        wait_for(url)
        with httpx.Client(base_url=url) as http:
            yield http


@pytest.fixture(scope="module")
def with_accounts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """As in docker-compose.yml, on SQLite."""
    folder, port = tmp_path_factory.mktemp("accounts"), free_port()
    settings = folder / "auth.ini"
    settings.write_text(AUTH_INI.format(folder=folder, password=ADMIN[1]))
    command = [sys.executable, "-m", "syncnorm.service.local.mlflow_server", "server", f"--port={port}", "--workers=1"]
    command += ["--app-name=basic-auth", f"--backend-store-uri=sqlite:///{folder}/mlflow.db"]
    command += [f"--artifacts-destination={folder}/artifacts"]
    environment = environment_of_mlflow(os.environ) | {
        "MLFLOW_AUTH_CONFIG_PATH": str(settings),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "only here",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_SERVER_ALLOWED_HOSTS": f"localhost:{port},127.0.0.1:{port}",
        "SYNCNORM_MLFLOW_PUBLIC_URL": PUBLIC["Origin"],
    }
    log = folder / "log"
    with log.open("wb") as out, subprocess.Popen(command, env=environment, stdout=out, stderr=out) as server:
        try:
            wait_for(f"http://127.0.0.1:{port}")
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", auth=ADMIN) as http:
                yield http
        finally:
            server.terminate()


@pytest.fixture(params=["embedded", "with_accounts"])
def mlflow(request: pytest.FixtureRequest) -> httpx.Client:
    found: httpx.Client = request.getfixturevalue(request.param)
    return found


def search(mlflow: httpx.Client, headers: dict[str, str]) -> int:
    """Status of what MLflow's page asks when it opens."""
    path = "/ajax-api/2.0/mlflow/experiments/search"
    return mlflow.post(path, json={"max_results": 1}, headers=headers).status_code


def test_pages_of_the_public_name_work(mlflow: httpx.Client) -> None:
    own = PUBLIC | {"Sec-Fetch-Site": "same-origin"}

    assert (mlflow.get("/", headers=own).status_code, search(mlflow, own)) == (200, 200)


def test_page_opens_as_model_training_and_is_whole(mlflow: httpx.Client) -> None:
    own = PUBLIC | {"Sec-Fetch-Site": "same-origin"}

    page, cached = mlflow.get("/", headers=own), mlflow.get("/", headers=own | {"If-None-Match": "*"})

    assert page.text.count("machine_learning") == 1
    assert page.text.rstrip().endswith("</html>")
    assert int(page.headers["Content-Length"]) == len(page.content)
    assert cached.text == page.text


def test_pages_of_this_address_work(mlflow: httpx.Client) -> None:
    assert search(mlflow, {"Origin": str(mlflow.base_url).rstrip("/")}) == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://localhost:9999"},
        {"Origin": "https://other.example.org"},
        {"Origin": "http://mlflow.example.org", "Host": "mlflow.example.org:9999"},
        {"Host": "other.example.org"},
        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"},
    ],
    ids=str,
)
def test_pages_of_others_do_not(mlflow: httpx.Client, headers: dict[str, str]) -> None:
    assert (mlflow.get("/", headers=headers).status_code, search(mlflow, headers)) == (403, 403)


def test_accounts_are_asked_for(with_accounts: httpx.Client) -> None:
    answer = with_accounts.get("/ajax-api/2.0/mlflow/experiments/search?max_results=1", auth=("admin", "wrong"))

    assert answer.status_code == 401


def call(mlflow: httpx.Client, path: str, body: dict[str, str]) -> dict[str, dict[str, dict[str, str]]]:
    return dict(mlflow.post(f"/api/2.0/mlflow/{path}", json=body).raise_for_status().json())


def run_at(mlflow: httpx.Client, location: str) -> str:
    """A new run in an experiment whose artifacts are said to lie there."""
    body = {"name": secrets.token_hex(8), "artifact_location": location}
    made = mlflow.post("/api/2.0/mlflow/experiments/create", json=body).raise_for_status().json()
    return call(mlflow, "runs/create", {"experiment_id": made["experiment_id"]})["run"]["info"]["run_id"]


@pytest.mark.parametrize("scheme", ["file://", ""])
def test_files_of_the_server_are_not_artifacts(mlflow: httpx.Client, tmp_path: Path, scheme: str) -> None:
    run, private = run_at(mlflow, f"{scheme}{tmp_path}"), tmp_path / "private"
    private.mkdir()
    (private / "admin.token").write_text("secret")
    (tmp_path / run).mkdir()
    (tmp_path / run / "artifacts").symlink_to(private)

    read = mlflow.get("/get-artifact", params={"run_uuid": run, "path": "admin.token"})
    listed = mlflow.get("/api/2.0/mlflow/artifacts/list", params={"run_id": run})
    written = mlflow.post(
        "/ajax-api/2.0/mlflow/upload-artifact", params={"run_uuid": run, "path": "planted"}, json={"by": "somebody"}
    )

    assert [answer.status_code for answer in (read, listed, written)] == [403, 403, 403]
    assert "opens only its own artifacts" in read.json()["message"]
    assert [path.name for path in private.iterdir()] == ["admin.token"]


def test_artifacts_of_the_server_are(mlflow: httpx.Client) -> None:
    run = call(mlflow, "runs/create", {"experiment_id": "0"})["run"]["info"]["run_id"]
    where = {"run_uuid": run, "path": "report.json"}
    mlflow.post("/ajax-api/2.0/mlflow/upload-artifact", params=where, json={"loss": 1}).raise_for_status()

    assert mlflow.get("/get-artifact", params=where).json() == {"loss": 1}


@pytest.mark.parametrize("path", ["assistant/config", "assistant/message", "assistant/skills/install"])
def test_assistant_is_off(mlflow: httpx.Client, path: str) -> None:
    answers = [mlflow.request(method, f"/ajax-api/3.0/mlflow/{path}", json={}) for method in ("GET", "POST", "PUT")]

    assert [answer.status_code for answer in answers] == [404, 404, 404]
    assert answers[0].json()["message"] == "The assistant of MLflow is off here."


def test_gateway_is_off(mlflow: httpx.Client) -> None:
    assert mlflow.get("/gateway/mlflow/v1/models").status_code == 501
