"""What docker-compose.yml promises, read from the file itself: no engine needed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from syncnorm.trainer.contract.spec import LimitsSpec
from tests.helpers.paths import ROOT

COMPOSITION = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSITION["services"]
WORKER_HOST = yaml.safe_load((ROOT / "deploy" / "worker-host.yml").read_text())["services"]["ray-worker"]
PARTS = ("bucket", "bucket-host", "cluster", "gpu", "worker-host")
EVERY = [*SERVICES.items(), ("worker-host", WORKER_HOST)]


@pytest.mark.parametrize(("name", "service"), EVERY)
def test_service_is_confined(name: str, service: dict[str, Any]) -> None:
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["init"] is True
    assert service["pids_limit"] > 0
    assert "mem_limit" in service
    assert name in ("postgres", "prometheus") or service["user"].startswith("${SYNCNORM_UID:-10001}")


def test_ports_are_published_for_three_services_on_loopback_by_default() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}

    assert set(published) == {"api", "mlflow", "grafana"}
    assert all(port.startswith("${SYNCNORM_PUBLISH:-127.0.0.1}:") for ports in published.values() for port in ports)


def test_database_is_on_a_network_without_workers_and_without_a_way_out() -> None:
    assert SERVICES["postgres"]["networks"] == ["data"]
    assert COMPOSITION["networks"]["data"]["internal"] is True
    assert SERVICES["ray-worker"]["networks"] == SERVICES["ray-head"]["networks"] == ["cluster"]


def test_secrets_are_files_only() -> None:
    made = set(re.findall(r"^make_secret (\w+)", (ROOT / "deploy" / "init-secrets").read_text(), re.MULTILINE))
    used = {secret for service in SERVICES.values() for secret in service.get("secrets", ())}
    values = [value for _, service in EVERY for value in service.get("environment", {}).values()]

    assert set(COMPOSITION["secrets"]) == made == used
    assert all("file" in secret for secret in COMPOSITION["secrets"].values())
    assert not [value for value in values if re.search(r"://[^/]*:[^/@]+@", str(value))]


def test_secrets_are_made_once_and_only_for_their_owner(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    environment = {**os.environ, "SYNCNORM_SECRETS": str(folder), "SYNCNORM_UID": str(os.getuid())}
    command = [str(ROOT / "deploy" / "init-secrets")]

    subprocess.run(command, env=environment, check=True, capture_output=True)
    made = {path.name: path.read_text() for path in folder.iterdir()}
    (folder / "ray_token").unlink()
    subprocess.run(command, env=environment, check=True, capture_output=True)
    again = {path.name: path.read_text() for path in folder.iterdir()}

    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o400}
    assert {name for name in made if made[name] != again[name]} == {"ray_token"}
    assert min(len(text.strip()) for text in made.values()) >= 64


def test_worker_may_take_longer_to_stop_than_a_job_to_write_its_last_checkpoint() -> None:
    for service in (SERVICES["ray-worker"], WORKER_HOST):
        assert int(service["stop_grace_period"].removesuffix("s")) > LimitsSpec().grace_s


def test_worker_of_another_host_runs_as_one_of_this_composition() -> None:
    same = ("image", "user", "command", "environment", "secrets", "volumes", "networks", "tmpfs", "stop_grace_period")

    assert {key: WORKER_HOST[key] for key in same} == {key: SERVICES["ray-worker"][key] for key in same}


def test_bucket_takes_the_place_of_the_volume_on_every_host() -> None:
    first = yaml.safe_load((ROOT / "deploy" / "bucket.yml").read_text())
    host = yaml.safe_load((ROOT / "deploy" / "bucket-host.yml").read_text())
    api, worker = first["services"]["api"], first["services"]["ray-worker"]

    assert host["services"]["ray-worker"] == worker
    assert SERVICES["api"]["environment"]["SYNCNORM_STORAGE"] == "${SYNCNORM_STORAGE:-/storage}"
    assert api["environment"]["SYNCNORM_STORAGE"].startswith("${SYNCNORM_STORAGE:?")
    assert api["secrets"] == worker["secrets"] == list(first["secrets"]) == list(host["secrets"])
    assert worker["volumes"] == [f"scratch:{worker['environment']['SYNCNORM_SCRATCH']}"]
    assert first["networks"]["cluster"]["internal"] is False
    # A folder of the image, so that the new volume belongs to whom the containers run as.
    assert " /scratch" in (ROOT / "deploy" / "Dockerfile").read_text()


def test_head_takes_no_work_and_every_ray_process_asks_for_the_token() -> None:
    assert {"--num-cpus=0", "--num-gpus=0"} <= set(SERVICES["ray-head"]["command"])
    assert "RAY_AUTH_MODE=token" in (ROOT / "deploy" / "Dockerfile").read_text()
    for name in ("ray-head", "ray-worker", "api"):
        assert SERVICES[name]["environment"]["RAY_AUTH_TOKEN_PATH"] == "/run/secrets/ray_token"


def test_every_setting_of_the_service_is_decided_here_or_left_to_the_operator() -> None:
    read = set(re.findall(r'"(SYNCNORM_\w+)"', (ROOT / "service" / "settings.py").read_text()))

    assert len(read) > 20
    assert read - set(SERVICES["api"]["environment"]) == set()


def test_every_variable_of_the_api_is_in_the_manual() -> None:
    taken = re.findall(r"\$\{(SYNCNORM_\w+)", json.dumps(SERVICES["api"]["environment"]))
    manual = (ROOT / "docs" / "reference" / "composition.md").read_text()

    assert [name for name in taken if f"`{name}`" not in manual] == []


@pytest.mark.parametrize("name", ["docker-compose.yml", *(f"deploy/{part}.yml" for part in PARTS)])
def test_no_default_holds_a_variable(name: str) -> None:
    """docker-compose 1.29 takes `${A:-x${B}}` for `${A:-x${B}` and a brace."""
    assert re.findall(r"\$\{[^}]*\$", (ROOT / name).read_text()) == []


def entrypoint(variable: str, **environment: str) -> str:
    """Value of a variable in what the image's entrypoint runs."""
    command = [str(ROOT / "deploy" / "entrypoint"), "printenv", variable]
    environment = {**os.environ, **environment}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("name", ["SYNCNORM_PUBLIC_URL", "SYNCNORM_MLFLOW_PUBLIC_URL"])
def test_address_for_browsers_is_the_published_one_unless_told(name: str) -> None:
    default = {f"{name}_DEFAULT": "http://127.0.0.1:9"}

    assert f"{name}_DEFAULT" in SERVICES["api"]["environment"]
    assert entrypoint(name, **default, **{name: ""}) == "http://127.0.0.1:9"
    assert entrypoint(name, **default, **{name: "https://a.example"}) == "https://a.example"


def test_everything_that_the_image_copies_is_let_through_to_the_build() -> None:
    let_through = set(re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE))
    copies = re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "deploy" / "Dockerfile").read_text(), re.MULTILINE)

    assert {name.rstrip("*") for copy in copies for name in copy.split()} == let_through


VISION_PAIR = {
    line
    for line in (ROOT / "constraints-vision.txt").read_text().split()
    if line.startswith(("torch==", "torchvision=="))
}


@pytest.mark.parametrize("extras", ["", "s3,vision", "server,s3"])
def test_image_is_built_with_what_its_services_and_workers_need_and_the_extras_asked_for(extras: str) -> None:
    made = [sys.executable, str(ROOT / "deploy" / "requirements.py"), f"server,worker,{extras}"]
    done = subprocess.run(made, cwd=ROOT, capture_output=True, text=True, check=True)
    names = [re.split(r"[<>=]", line)[0] for line in done.stdout.split()]

    assert {"httpx", "fastapi", "psycopg[binary]", "mlflow[auth]", "torch", "ray[default,train]"} <= set(names)
    assert ("s3fs" in names, "timm" in names) == ("s3" in extras, "vision" in extras)
    assert not any(name.startswith("syncnorm") for name in names)


@pytest.mark.parametrize(
    ("extras", "torch"),
    [("", {"torch==2.13.0"}), ("s3", {"torch==2.13.0"}), ("vision", VISION_PAIR), ("medical,s3", VISION_PAIR)],
)
def test_image_with_vision_has_the_torch_that_torchvision_goes_with(extras: str, torch: set[str]) -> None:
    needed = subprocess.run(
        [sys.executable, str(ROOT / "deploy" / "requirements.py"), f"server,worker,{extras}"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout
    made = [sys.executable, str(ROOT / "deploy" / "pins.py")]
    pins = subprocess.run(made, cwd=ROOT, input=needed, capture_output=True, check=True).stdout.decode().split()

    names = [pin.split("==")[0].lower() for pin in pins]
    assert {pin for pin in pins if pin.startswith(("torch==", "torchvision=="))} == torch
    assert len(names) == len(set(names))
    assert {"lightning", "ray", "mlflow"} <= set(names)


def test_extra_that_there_is_not_is_refused_by_name() -> None:
    made = [sys.executable, str(ROOT / "deploy" / "requirements.py"), "server,postgres"]

    done = subprocess.run(made, cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert "must name extras of syncnorm (norm, worker, server, " in done.stderr
    assert done.stderr.endswith("got 'postgres'.\n")
