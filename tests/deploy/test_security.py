"""What an outsider finds: on the published ports, from another network, and in what Docker shows of the containers."""

from __future__ import annotations

import json
import subprocess
import tarfile
import zlib
from typing import Any

import httpx
import pytest
import yaml

from tests.helpers.deploy.composition import ROOT, Composition, docker, inspect

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(1500)]

SERVICES = ("postgres", "mlflow", "ray-head", "ray-worker", "api")
# Every port that something in the composition listens on, and a few that Ray opens by default.
PORTS = (5000, 5432, 6379, 8000, 8080, 8265, 10001, 52365)
SCAN = """
import concurrent.futures, socket, sys
def is_open(target):
    address, port = target.split(":")
    with socket.socket() as probe:
        probe.settimeout(3)
        return probe.connect_ex((address, int(port))) == 0
with concurrent.futures.ThreadPoolExecutor(64) as pool:
    print(*(target for target, found in zip(sys.argv[1:], pool.map(is_open, sys.argv[1:])) if found))
"""
ASK = """
import sys, urllib.request, urllib.error
try:
    print(urllib.request.urlopen(sys.argv[1], timeout=10).status)
except urllib.error.HTTPError as error:
    print(error.code)
"""


def addresses(composition: Composition) -> list[str]:
    """Every address of every container."""
    found = []
    for service in SERVICES:
        for container in composition.containers(service):
            networks: dict[str, Any] = inspect(container)["NetworkSettings"]["Networks"]
            found += [network["IPAddress"] for network in networks.values()]
    return found


def scan(composition: Composition, network: str, targets: list[str]) -> list[str]:
    """Those of the targets, address:port, that a fresh container on that network can open."""
    image = inspect(composition.containers("api")[0])["Image"]
    out = docker("run", "--rm", f"--network={network}", "--entrypoint=python", image, "-c", SCAN, *targets)
    return out.split()


def test_only_api_and_mlflow_are_published_on_loopback(composition: Composition) -> None:
    bindings = {
        service: [
            (port, binding["HostIp"])
            for container in composition.containers(service)
            for port, found in inspect(container)["NetworkSettings"]["Ports"].items()
            for binding in found or ()
        ]
        for service in SERVICES
    }

    assert bindings == {
        "postgres": [],
        "mlflow": [("5000/tcp", "127.0.0.1")],
        "ray-head": [],
        "ray-worker": [],
        "api": [("8000/tcp", "127.0.0.1")],
    }


def test_nothing_answers_a_container_of_another_network(composition: Composition) -> None:
    targets = [f"{address}:{port}" for address in addresses(composition) for port in PORTS]

    inside = scan(composition, f"{composition.project}_cluster", targets)
    outside = scan(composition, "bridge", targets)

    assert any(target.endswith(":8265") for target in inside), "the scan itself must be able to find a port"
    assert outside == []


def test_jobs_can_reach_neither_the_database_nor_the_internet(composition: Composition) -> None:
    postgres = composition.containers("postgres")[0]
    networks = inspect(postgres)["NetworkSettings"]["Networks"].values()
    targets = [f"{network['IPAddress']}:5432" for network in networks]

    reached = composition.execute("ray-worker", "python", "-c", SCAN, *targets, "1.1.1.1:443").split()

    assert reached == []


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/cluster", "/v1/tokens"])
@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}])
def test_api_refuses_callers_without_a_valid_token(
    composition: Composition, path: str, headers: dict[str, str]
) -> None:
    answer = httpx.get(f"http://127.0.0.1:{composition.ports['api']}{path}", headers=headers)

    assert answer.status_code == 401


@pytest.mark.parametrize("account", [None, ("admin", "password"), ("syncnorm", "wrong")])
def test_mlflow_refuses_callers_without_a_valid_account(
    composition: Composition, account: tuple[str, str] | None
) -> None:
    url = f"http://127.0.0.1:{composition.ports['mlflow']}"

    listed = httpx.post(f"{url}/api/2.0/mlflow/experiments/search", json={"max_results": 1}, auth=account)
    artifacts = httpx.get(f"{url}/api/2.0/mlflow-artifacts/artifacts", params={"path": "1"}, auth=account)

    assert (listed.status_code, artifacts.status_code) == (401, 401)


@pytest.mark.parametrize("host", ["10.attacker.example:5000", "mlflow", "localhost:5000.evil.example"])
def test_mlflow_refuses_foreign_host_names(composition: Composition, host: str) -> None:
    with composition.mlflow() as mlflow:
        answer = mlflow.post("/api/2.0/mlflow/experiments/search", json={"max_results": 1}, headers={"Host": host})

    assert answer.status_code == 403


FOREIGN_PAGES = {
    "another port of localhost": {"Origin": "http://localhost:9999"},
    "another port of this address": {"Origin": "http://127.0.0.1:9999", "Sec-Fetch-Site": "same-site"},
    "another port, as a picture": {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"},
    "another site": {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"},
}


@pytest.mark.parametrize("page", FOREIGN_PAGES)
def test_pages_of_others_are_refused_by_api_and_mlflow_with_valid_credentials(
    composition: Composition, page: str
) -> None:
    headers, create = FOREIGN_PAGES[page], "mlflow/experiments/create"

    with composition.mlflow() as mlflow:
        tracking = [
            mlflow.get("/", headers=headers),
            mlflow.get("/ajax-api/2.0/mlflow/experiments/search?max_results=1", headers=headers),
            mlflow.post(f"/ajax-api/2.0/{create}", json={"name": "evil"}, headers=headers),
            mlflow.post(f"/api/2.0/{create}", json={"name": "evil"}, headers=headers),
            mlflow.put("/api/2.0/mlflow-artifacts/artifacts/evil.txt", content=b"x", headers=headers),
        ]
    token = {"Authorization": f"Bearer {composition.secret('api_admin_token')}"}
    with httpx.Client(base_url=f"http://127.0.0.1:{composition.ports['api']}", headers=token | headers) as http:
        api = [
            *(http.get(path) for path in ("/v1/jobs", "/docs", "/metrics", "/healthz")),
            http.post("/v1/tokens", json={"owner": "evil", "scopes": ["admin"]}),
            http.post("/internal/v1/attempts/x-1/heartbeat", json={}),
        ]

    assert [answer.status_code for answer in (*tracking, *api)] == [403] * 11
    shared = [name for answer in (*tracking, *api) for name in answer.headers if name.startswith("access-control")]
    assert shared == []


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_own_pages_of_mlflow_read_and_write(composition: Composition, host: str) -> None:
    own = {"Host": f"{host}:{composition.ports['mlflow']}"}
    own |= {"Origin": f"http://{own['Host']}", "Sec-Fetch-Site": "same-origin"}

    with composition.mlflow() as mlflow:
        page = mlflow.get("/", headers=own)
        listed = mlflow.post("/ajax-api/2.0/mlflow/experiments/search", json={"max_results": 1}, headers=own)

    assert (page.status_code, listed.status_code) == (200, 200)
    assert page.headers["x-frame-options"] == "DENY"


def test_prometheus_reads_the_metrics_of_the_api_by_the_name_it_knows(composition: Composition) -> None:
    settings = yaml.safe_load((ROOT / "deploy" / "monitoring" / "prometheus.yml").read_text())
    jobs = {job["job_name"]: job for job in settings["scrape_configs"]}
    [target] = jobs["syncnorm"]["static_configs"][0]["targets"]

    status = composition.execute("ray-worker", "python", "-c", ASK, f"http://{target}/metrics")

    assert status.strip() == "200"


@pytest.mark.parametrize("path", ["api/jobs/", "api/cluster_status", "api/version", "nodes?view=summary"])
def test_ray_refuses_callers_without_a_token_even_inside(composition: Composition, path: str) -> None:
    status = composition.execute("mlflow", "python", "-c", ASK, f"http://ray-head:8265/{path}")

    assert status.strip() == "401"


def test_ray_refuses_a_node_or_driver_without_a_token(composition: Composition) -> None:
    code = (
        "import os; os.environ['RAY_AUTH_MODE'] = 'disabled'\n"
        "import ray; ray.init(address='ray-head:6379', logging_level='ERROR')\n"
        "print('JOINED', len(ray.nodes()))"
    )

    out = composition.execute("mlflow", "python", "-c", code, check=False)

    assert "JOINED" not in out


def secret_values(composition: Composition) -> dict[str, str]:
    """Every secret by the name of its file; of a line for psql the password alone."""
    return {path.name: path.read_text().strip().rsplit(":", 1)[-1] for path in composition.secrets.iterdir()}


def test_no_secret_shows_in_docker(composition: Composition) -> None:
    secrets = secret_values(composition)
    containers = [container for service in SERVICES for container in composition.containers(service)]
    image = inspect(containers[-1])["Image"]

    shown = {
        "inspect": json.dumps([inspect(container) for container in containers]),
        "logs": composition.compose("logs", "--no-color"),
        "history": docker("history", "--no-trunc", image),
        "processes": "".join(docker("top", container, "-eo", "pid,args") for container in containers),
    }

    assert [(name, where) for name, value in secrets.items() for where, text in shown.items() if value in text] == []


def found_in_layers(image: str, values: dict[str, bytes]) -> set[str]:
    """Names of the values that stand anywhere in what `docker save` gives out: deleted files of lower layers, too."""
    found: set[str] = set()
    longest = max(map(len, values.values()))
    with subprocess.Popen(["docker", "save", image], stdout=subprocess.PIPE) as saving:
        with tarfile.open(fileobj=saving.stdout, mode="r|") as archive:
            for member in archive:
                file = archive.extractfile(member)
                if file is None:
                    continue
                start = file.read(1 << 24)
                # Newer engines compress layers.
                expand = zlib.decompressobj(wbits=31).decompress if start[:2] == b"\x1f\x8b" else bytes
                tail, chunk = b"", start
                while chunk:
                    window = tail + expand(chunk)
                    found |= {name for name, value in values.items() if value in window}
                    tail, chunk = window[-longest:], file.read(1 << 24)
        assert saving.wait() == 0
    return found


def test_no_layer_of_the_image_holds_a_secret(composition: Composition) -> None:
    image = inspect(composition.containers("api")[0])["Image"]
    secrets = {name: value.encode() for name, value in secret_values(composition).items()}
    known = (ROOT / "deploy" / "healthy.py").read_bytes()

    assert found_in_layers(image, secrets | {"a file that is there": known}) == {"a file that is there"}


def test_image_holds_no_secret_file_and_no_compiler(composition: Composition) -> None:
    image = inspect(composition.containers("api")[0])["Image"]
    names = ("gcc", "cc", "g++", "make", "ray_token", "*_pgpass", "postgres_password", ".env", ".git")
    search = [argument for name in names for argument in ("-o", "-name", name)][1:]

    found = docker(
        "run", "--rm", "--entrypoint=find", image,
        *("/usr/bin", "/usr/local", "/opt", "/tmp", "-xdev", "(", *search, ")", "-not", "-type", "d"),
    )  # fmt: skip

    assert found == ""


def test_containers_of_ours_run_without_rights(composition: Composition) -> None:
    for service in ("mlflow", "ray-head", "ray-worker", "api"):
        status = composition.execute(service, "cat", "/proc/self/status")
        fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)

        assert "0" not in fields["Uid"].split()
        assert int(fields["CapEff"], 16) == int(fields["CapBnd"], 16) == 0
        assert fields["NoNewPrivs"].strip() == "1"
        assert composition.execute(service, "sh", "-c", "touch /opt/x 2>/dev/null || echo refused").strip() == "refused"
