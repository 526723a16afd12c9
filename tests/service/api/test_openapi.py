"""The OpenAPI document is valid and true: generators take it, and whatever is sent, answers are what it says."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts

from tests.helpers.amounts import amount
from tests.helpers.paths import ROOT
from tests.helpers.service.api import ADMIN, SPEC, api

CONFIG = Path(__file__).with_name("schemathesis.toml")
Document = dict[str, Any]
SEED = 13
"""Of the requests that are made up on every run; the long form draws another one each time."""


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, FastAPI, list[str]]]:
    """The application on a real socket, with jobs and a study in it: (url, the application, their ids)."""
    with api(folder, auth=True) as (client, world):
        ids = [
            client.post("/v1/jobs", json=SPEC | {"labels": labels}).json()["id"]
            for labels in ({}, {"outcome": "user_error"}, {"works": "999"}, {})
        ]
        study = {"name": "s", "base": {key: SPEC[key] for key in ("model", "data")}, "grid": {"optimizer.lr": [0.1]}}
        ids.append(client.post("/v1/studies", json=study).json()["id"])
        for _ in range(6):
            world.step()
        artifacts = folder / "jobs" / ids[0] / "attempts" / "1" / "artifacts"
        artifacts.mkdir(parents=True, exist_ok=True)
        (artifacts / "spec.yaml").write_text("name: job\n")
        server = uvicorn.Server(uvicorn.Config(client.app, log_config=None, timeout_graceful_shutdown=1))
        # With its protocol named: else small answers wait 40 ms for an ACK.
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
            thread.start()
            try:
                yield f"http://127.0.0.1:{listener.getsockname()[1]}", client.app, ids  # type: ignore[misc]
            finally:
                server.should_exit = True
                thread.join()


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FastAPI]:
    with api(tmp_path_factory.mktemp("app")) as (client, _):
        yield client.app  # type: ignore[misc]


@pytest.fixture(scope="module")
def document(app: FastAPI) -> Document:
    return app.openapi()


# Truth: answers are as documented


def send_anything(folder: Path, *options: str, seed: int = SEED) -> subprocess.CompletedProcess[str]:
    """Have schemathesis send made-up requests to every operation, with all of its checks."""
    command = Path(sys.executable).with_name("st")
    words = ["--config-file", str(CONFIG), "run", "--checks", "all", "--no-color", "--seed", str(seed), *options]
    with served(folder) as (url, _, ids):
        environment = os.environ | {
            "SCHEMATHESIS_HOOKS": "tests.helpers.service.schemathesis_hooks",
            "SYNCNORM_TEST_IDS": ",".join(ids),
            "SYNCNORM_TEST_SEED": str(seed),
            "PYTHONPATH": str(ROOT),
        }
        words += ["-H", f"Authorization: Bearer {ADMIN}", f"{url}/openapi.json"]
        return subprocess.run(
            [command, *words], env=environment, cwd=folder, capture_output=True, text=True, check=False
        )


def test_answers_are_as_documented(tmp_path: Path) -> None:
    done = send_anything(tmp_path, "--max-examples", "1", "--phases", "examples,coverage,fuzzing")

    assert done.returncode == 0, done.stdout[-20_000:]
    assert int(re.findall(r"Tested: (\d+)", done.stdout)[0]) >= 40


@pytest.mark.chaos
@pytest.mark.parametrize("part", range(10))  # a thousand an operation, with a seed of its own each
def test_answers_are_as_documented_long(tmp_path: Path, part: int) -> None:
    seed = random.SystemRandom().randrange(2**32)

    done = send_anything(tmp_path, "--max-examples", str(amount(100)), seed=seed)

    print(f"seed {seed}\n{done.stdout[-2_000:]}")
    assert done.returncode == 0, done.stdout[-20_000:]


def test_undocumented_answer_would_be_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("syncnorm.service.store.tables.jobs.JobTable.count_by_state", lambda _: 1 / 0)

    done = send_anything(tmp_path, "--max-examples", "1", "--phases", "fuzzing", "--include-path", "/v1/cluster")

    assert done.returncode == 1, done.stdout
    assert "Server error" in done.stdout


def test_every_route_of_the_api_is_documented_and_no_internal_one(app: FastAPI, document: Document) -> None:
    routes = {
        (method, route.path_format)
        for route in iter_route_contexts(app.routes)
        if getattr(route.original_route, "include_in_schema", False)
        for method in route.methods or ()
    }

    assert routes == {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    assert not [path for path in document["paths"] if path.startswith("/internal")]


# Form


def operations(document: Document) -> Iterator[tuple[str, Document]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield f"{method.upper()} {path}", operation


def resolved(document: Document, value: Any) -> Any:
    while isinstance(value, dict) and "$ref" in value:
        found: Any = document
        for part in value["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        value = found
    return value


def test_every_reference_leads_somewhere(document: Document) -> None:
    for reference in set(re.findall(r'"\$ref": "([^"]+)"', json.dumps(document))):
        assert resolved(document, {"$ref": reference})


def test_every_problem_is_one_of_rfc_9457(document: Document) -> None:
    for name, operation in operations(document):
        for status, response in operation["responses"].items():
            if int(status) >= 400 and (name, status) != ("GET /readyz", "503"):
                content = resolved(document, response)["content"]
                schema = content["application/problem+json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/ProblemDetails"}, (name, status)


def test_operations_have_names_that_generators_can_use(document: Document) -> None:
    names = [operation["operationId"] for _, operation in operations(document)]

    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)+", name) for name in names)
    assert {"submit_job", "list_jobs", "get_job", "cancel_job", "submit_study", "get_logs"} <= set(names)


def test_scope_read_changes_nothing(document: Document) -> None:
    needs_read = {name for name, one in operations(document) if one.get("security") == [{"token": ["read"]}]}

    assert {name.partition(" ")[0] for name in needs_read} == {"GET"}


def test_operations_say_which_scope_they_need(document: Document) -> None:
    scopes = {name: operation.get("security") for name, operation in operations(document)}

    assert scopes["GET /v1/jobs"] == [{"token": ["read"]}]
    assert scopes["POST /v1/jobs"] == [{"token": ["submit"]}]
    assert scopes["POST /v1/tokens"] == [{"token": ["admin"]}]
    assert {name for name, scope in scopes.items() if scope is None} == {"GET /healthz", "GET /readyz", "GET /metrics"}


def test_headers_of_requests_and_answers_are_described(document: Document) -> None:
    found = dict(operations(document))

    def asked(name: str) -> set[str]:
        return {one["name"] for one in found[name]["parameters"] if one["in"] == "header"}

    def answered(name: str, status: str) -> set[str]:
        return set(resolved(document, found[name]["responses"][status])["headers"])

    assert asked("POST /v1/jobs") == {"Idempotency-Key"}
    assert asked("PATCH /v1/jobs/{job_id}") == asked("DELETE /v1/jobs/{job_id}") == {"If-Match"}
    assert asked("GET /v1/jobs/{job_id}/events") == {"Last-Event-ID", "If-None-Match"}
    assert answered("POST /v1/jobs", "201") >= {"Location", "Idempotency-Replayed", "X-Request-Id"}
    assert "ETag" in answered("GET /v1/jobs/{job_id}", "200") & answered("PATCH /v1/jobs/{job_id}", "200")
    assert "Retry-After" in answered("POST /v1/jobs", "429") & answered("POST /v1/jobs", "503")
    assert "Allow" in document["components"]["responses"]["MethodNotAllowed"]["headers"]


def test_bodies_that_are_not_json_are_described(document: Document) -> None:
    found = dict(operations(document))

    def forms(name: str) -> set[str]:
        return set(found[name]["responses"]["200"]["content"])

    assert set(found["PUT /v1/packages/{sha256}"]["requestBody"]["content"]) == {"application/zip"}
    assert "image/png" in forms("GET /v1/studies/{study_id}/report")
    streams = {"application/json", "application/x-ndjson", "text/event-stream"}
    assert forms("GET /v1/jobs/{job_id}/logs") == streams | {"text/plain"}
    assert forms("GET /v1/jobs/{job_id}/events") == streams


def test_plan_is_typed(document: Document) -> None:
    answer = document["paths"]["/v1/jobs"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]

    plan = resolved(document, answer)
    assert {"world_size", "batch", "fits", "findings", "conversion", "norm"} <= set(plan["properties"])
    assert set(resolved(document, plan["properties"]["batch"])["properties"]) == {"per_worker", "norm_group", "global"}


def test_document_names_its_server_license_and_tags(document: Document) -> None:
    used = {tag for _, operation in operations(document) for tag in operation["tags"]}

    assert document["servers"][0]["url"] == "/"
    assert document["info"]["license"]["identifier"] == "Apache-2.0"
    assert document["info"]["contact"]
    assert {tag["name"] for tag in document["tags"]} >= used


def undescribed(document: Document) -> list[str]:
    """Operations, parameters, schemas and their properties that have no description."""
    found = []
    for name, operation in operations(document):
        found += [] if operation.get("description") else [name]
        found += [f"{name} {one['name']}" for one in operation["parameters"] if not one.get("description")]
    for name, schema in document["components"]["schemas"].items():
        found += [] if schema.get("description") else [name]
        found += [f"{name}.{key}" for key, one in schema.get("properties", {}).items() if not one.get("description")]
    return found


def test_everything_is_described(document: Document) -> None:
    assert undescribed(document) == []


def test_whatever_lacks_a_description_is_found() -> None:
    bare = {
        "paths": {"/a": {"get": {"parameters": [{"name": "q", "description": ""}]}}},
        "components": {"schemas": {"A": {"properties": {"b": {"type": "string"}}}}},
    }

    assert undescribed(bare) == ["GET /a", "GET /a q", "A", "A.b"]


# Generators


def tool(name: str, package: str) -> str:
    """The command of a generator, which these tests skip without."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    return found or pytest.skip(f"{name} is not installed ({package})")


@pytest.fixture(scope="module")
def written(document: Document, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("document") / "openapi.json"
    path.write_text(json.dumps(document))
    return path


def run(*words: str | Path, **options: Any) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_validator_accepts_the_document(document: Document) -> None:
    validator = pytest.importorskip("openapi_spec_validator", reason="pip install openapi-spec-validator")

    validator.validate(document)


def test_typescript_generator_accepts_the_document(written: Path) -> None:
    made = written.with_suffix(".ts")

    said = run(tool("openapi-typescript", "npm install -g openapi-typescript"), written, "-o", made)

    assert "warn" not in said.lower()
    assert "ProblemDetails: {" in made.read_text()


CLIENT_CONFIG = """
# The generator knows no zip: https://github.com/openapi-generators/openapi-python-client#content_type_overrides
content_type_overrides: {application/zip: application/octet-stream}
"""
USE_CLIENT = """
import sys

from syncnorm_client import AuthenticatedClient
from syncnorm_client.api.jobs import get_job, list_jobs, patch_job, submit_job
from syncnorm_client.models import DataSpec, JobPatch, JobSpec, JobState, JobView, ModelSpec, Plan, ProblemDetails

client = AuthenticatedClient(base_url=sys.argv[1], token=sys.argv[2])
spec = JobSpec(name="generated", model=ModelSpec(name="resnet"), data=DataSpec(name="digits", batch_size=32))

plan = submit_job.sync(client=client, body=spec, dry_run=True)
assert isinstance(plan, Plan) and plan.batch.global_ == 32, plan
job = submit_job.sync(client=client, body=spec, idempotency_key="once")
assert isinstance(job, JobView) and job.state is JobState.QUEUED, job
page = list_jobs.sync(client=client, state=[JobState.QUEUED], limit=200)
assert job.id in [one.id for one in page.items], page
changed = patch_job.sync(job.id, client=client, body=JobPatch(priority=7), if_match=f'"{job.version}"')
assert get_job.sync(job.id, client=client).priority == changed.priority == 7
missing = get_job.sync("job_" + "0" * 26, client=client)
assert isinstance(missing, ProblemDetails) and missing.code == "not_found", missing
refused = submit_job.sync(client=client, body=JobSpec(name="-", model=spec.model, data=spec.data))
assert isinstance(refused, ProblemDetails) and refused.errors[0].pointer == "/name", refused
print(job.id)
"""


def test_generated_python_client_submits_and_lists(written: Path, tmp_path: Path) -> None:
    generator = tool("openapi-python-client", "pipx install openapi-python-client")
    config = tmp_path / "config.yml"
    config.write_text(CLIENT_CONFIG)
    made = tmp_path / "client"

    said = run(
        *(generator, "generate", "--path", written, "--output-path", made, "--meta", "none", "--config", config),
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
    )
    made.rename(tmp_path / "syncnorm_client")
    with served(tmp_path) as (url, _, _):
        job_id = run(sys.executable, "-c", USE_CLIENT, url, ADMIN, env=os.environ | {"PYTHONPATH": str(tmp_path)})

    assert "warning" not in said.lower()
    assert job_id.startswith("job_")
