"""`syncnorm doctor`: checks every part of a running service, and says what is wrong and what to change.

Runs where the API runs, with its settings: `docker compose exec api syncnorm doctor`. There the workers are looked at
by a small program on Ray (driver/cluster_probe.py), which needs no free CPU. The Ray and the MLflow that
`syncnorm serve` starts for itself know only that service, so it is asked about them.
"""

from __future__ import annotations

import contextlib
import functools
import secrets
import shlex
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx

from syncnorm.service.api.auth import ADMIN_FILE
from syncnorm.service.client.addresses import running_here
from syncnorm.service.integrations.ray_jobs import DRIVER_RESOURCE, ClusterUnreachableError, RayDispatcher, ray_token
from syncnorm.service.jobs.attempt_ending import OTHER_VERSION, lacks_our_program
from syncnorm.service.settings import Settings
from syncnorm.service.store.database import Database
from syncnorm.trainer.contract.cluster_report import REPORT_FILE, TOKEN_FILE, ClusterReport, HostReport
from syncnorm.trainer.contract.mlflow_rest import mlflow_account
from syncnorm.trainer.contract.text import counted
from syncnorm.trainer.storage.storage import Storage, is_url, storage_at

MAX_SKEW_S = 5.0
LEAST_FREE_GIB = 1.0
_POLL_S = 0.5
_NO_WORKER = (
    "One that has just started needs up to a minute. Else see `docker compose ps`, then "
    "`docker compose logs ray-worker`, and start what is missing with `docker compose up -d`."
)


@dataclass(frozen=True)
class Check:
    """One check. problem: what is wrong and what to change; None: it works."""

    name: str
    detail: str
    problem: str | None = None


def examine(settings: Settings, wait_s: float = 120.0) -> Iterator[Check]:
    """Every check, as soon as it is done. wait_s: limit for the program on the workers."""
    if settings.ray_address is None or settings.mlflow_uri is None or settings.database_url is None:
        yield from _embedded(settings)
        return
    yield _guarded("database", lambda: _database(settings.database))
    yield _guarded("mlflow", lambda: _mlflow(settings.mlflow_uri or ""))
    cluster = _guarded("ray", lambda: _ray(settings.ray_address or ""))
    yield cluster
    storage = _guarded("storage", lambda: _storage(settings.storage_root))
    yield storage
    if cluster.problem is None and storage.problem is None:
        yield from _hosts(settings, wait_s)


def _embedded(settings: Settings) -> Iterator[Check]:
    """The checks of a service with embedded Ray, MLflow or database."""
    address = running_here({"SYNCNORM_HOME": str(settings.home)})
    if address is None:
        yield Check(
            "service", "", f"no service runs on {settings.home}. Start one with `syncnorm serve`, or set SYNCNORM_HOME."
        )
        return
    token_file = settings.admin_token_file or settings.home / ADMIN_FILE
    token = token_file.read_text().strip() if token_file.exists() else None
    with httpx.Client(base_url=address.url, trust_env=False, timeout=30) as http:
        service = _guarded("service", lambda: _answering(http, address.url))
        yield service
        yield _guarded("database", lambda: _database(settings.database))
        yield _guarded("storage", lambda: _storage(settings.storage_root))
        if service.problem is None:
            yield from _parts(http, settings.home)
            yield _guarded("workers", lambda: _nodes(http, token))
            yield from _warm(http)


def _answering(http: httpx.Client, url: str) -> Check:
    http.get("/healthz").raise_for_status()
    return Check("service", url)


def _parts(http: httpx.Client, home: Path) -> Iterator[Check]:
    """The state of each part, from /readyz."""
    parts = http.get("/readyz").json()
    logs = {"cluster": "ray.log", "mlflow": "mlflow.log"}
    for name in ("cluster", "mlflow"):
        problem = f"it does not answer the service. See {home / logs[name]}; the service restarts it when it dies."
        yield Check(name, "it answers the service", None if parts.get(name) else problem)
    if not parts.get("ready") and parts.get("cluster") and parts.get("mlflow"):
        away = (
            ", ".join(name for name, fine in parts.items() if fine is False and name != "ready")
            or "a part it does not name"
        )
        yield Check(
            "ready", "", f"no job can start now, because these are not ready: {away}. See the log of the service."
        )


def _nodes(http: httpx.Client, token: str | None) -> Check:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    nodes = http.get("/v1/cluster", headers=headers).raise_for_status().json()["nodes"]
    cpus, gpus = sum(node["cpus"] for node in nodes), sum(node["gpus"] for node in nodes)
    if not nodes:
        return Check("workers", "", "Ray has no node yet. Wait a few seconds after the start of the service.")
    return Check("workers", f"{counted(len(nodes), 'host')}, {cpus:g} CPUs, {gpus:g} GPUs")


def _warm(http: httpx.Client) -> Iterator[Check]:
    """How plans and jobs start: in processes that are forked from a parent, or anew."""
    for name, one in (("plans", "plan"), ("jobs", "job")):
        yield _guarded(name, functools.partial(_parents, http, name, one))


def _parents(http: httpx.Client, name: str, one: str) -> Check:
    words = (line.split() for line in http.get("/metrics").raise_for_status().text.splitlines())
    values = {line[0]: float(line[1]) for line in words if line[0].startswith("syncnorm_warm_parent")}
    number = values.get(f'syncnorm_warm_parents{{forks="{name}"}}')
    if number is None:
        return Check(name, "cold: each starts processes of its own")
    size = values[f'syncnorm_warm_parent_bytes{{forks="{name}"}}']
    return Check(name, f"warm: {counted(int(number), 'parent')}, {size / 2**20:.0f} MiB; the first {one} starts one")


def _guarded(name: str, poll: Callable[[], Check]) -> Check:
    """A check whose exception becomes its problem."""
    try:
        return poll()
    except Exception as error:  # the operator wants to read whatever a driver or a client raises
        return Check(name, "", f"{type(error).__name__}: {str(error).strip() or 'no message'}")


def _database(url: str) -> Check:
    database = Database(url)
    try:
        before = datetime.now(UTC)
        with database.read() as connection:
            now = database.now(connection)
        skew_s = (now - before).total_seconds()
        revision, head = database.revisions()
    finally:
        database.close()
    if revision != head:
        return Check(
            "database", "", f"its tables are at {revision}, this version needs {head}. Run the migrate service."
        )
    if abs(skew_s) > MAX_SKEW_S:
        return Check("database", "", f"its clock is {skew_s:.0f} s off this host's. Let both follow one NTP server.")
    return Check("database", f"tables at {revision}")


def _mlflow(uri: str) -> Check:
    search = f"{uri}/api/2.0/mlflow/experiments/search"
    answer = httpx.post(search, json={"max_results": 1}, auth=mlflow_account(), trust_env=False)
    if answer.is_error:
        fix = "Check MLFLOW_TRACKING_USERNAME and its password, --allowed-hosts, and `docker compose logs mlflow`."
        return Check("mlflow", "", f"{uri} answered {answer.status_code} to our account. {fix}")
    if httpx.post(search, json={"max_results": 1}, trust_env=False).is_success:
        return Check("mlflow", "", "it answers without a password. Start it with --app-name=basic-auth.")
    return Check("mlflow", uri)


def _ray(url: str) -> Check:
    with contextlib.closing(RayDispatcher(url, ray_token())) as dispatcher:
        view = dispatcher.observe()
    if httpx.get(f"{url}/api/jobs/", trust_env=False).is_success:
        return Check("ray", "", "it answers without a token. Set RAY_AUTH_MODE=token on every node.")
    workers = [node for node in view.nodes if node.cpus or node.gpus]
    cpus, gpus = sum(node.cpus for node in workers), sum(node.gpus for node in workers)
    if not workers:
        return Check("ray", "", f"no worker has joined. {_NO_WORKER}")
    return Check("ray", f"{counted(len(workers), 'worker')}, {cpus:g} CPUs, {gpus:g} GPUs")


def _storage(root: str) -> Check:
    if not is_url(root) and not Path(root).is_dir():
        return Check("storage", "", f"there is no folder {root}. Mount the storage, or change SYNCNORM_STORAGE.")
    storage, name, word = storage_at(root), f".doctor-{secrets.token_hex(4)}", secrets.token_bytes(8)
    storage.write(name, word)
    found = storage.read(name)
    storage.remove(name)
    if found != word or storage.has(name):
        return Check(
            "storage",
            "",
            f"{root} does not give back what was just written. Repair it; what is written there can get lost.",
        )
    if is_url(root):
        return Check("storage", root)
    free_gib = shutil.disk_usage(root).free / 2**30
    if free_gib < LEAST_FREE_GIB:
        problem = f"{root} has only {free_gib * 1024:.0f} MiB free. Jobs need space for their checkpoints: free some."
        return Check("storage", "", problem)
    return Check("storage", f"{root}, {free_gib:.0f} GiB free")


def _hosts(settings: Settings, wait_s: float) -> Iterator[Check]:
    """The checks on the workers, from the report of the program that ran there."""
    try:
        report = _probe(settings, wait_s)
    except (ClusterUnreachableError, TimeoutError, OSError) as error:
        yield Check("workers", "", str(error))
        return
    for host in report.hosts:
        yield judge(host)
    for name, why in report.missing.items():
        yield Check(f"worker {name}", "", f"a process of the probe could not start there: {why}")
    problem = report.collective_error
    if problem:
        problem += ". The workers must reach each other on every TCP port of the network they share."
    yield Check("collective", f"all-reduce over {len(report.hosts)} workers", problem)


def judge(host: HostReport) -> Check:
    """The checks from a worker's report. Pure."""
    problems = []
    if host.storage_error:
        fix = "mount the same volume there and in api, or give it the same bucket and credentials"
        problems.append(f"can't write to the storage ({host.storage_error}): {fix}")
    if host.api_error:
        problems.append(f"can't reach the API ({host.api_error}): check SYNCNORM_WORKER_URL")
    if host.mlflow_error:
        problems.append(f"can't reach MLflow ({host.mlflow_error}): check SYNCNORM_MLFLOW_URI and --allowed-hosts")
    if host.clock_ahead_s is not None and abs(host.clock_ahead_s) > MAX_SKEW_S:
        problems.append(f"its clock is {host.clock_ahead_s:+.0f} s off the API's: use NTP")
    if host.gpus and host.cuda is None:
        problems.append("has GPUs but torch is a CPU build: build the image with a CUDA TORCH_INDEX")
    detail = f"{host.gpus} GPUs, torch for {'CUDA ' + host.cuda if host.cuda else 'CPU'}"
    return Check(f"worker {host.host}", detail, "; ".join(problems) or None)


def _probe(settings: Settings, wait_s: float) -> ClusterReport:
    """Run the probe on Ray and read what it found. Raises: TimeoutError, ClusterUnreachableError, OSError."""
    name = f"doctor-{secrets.token_hex(4)}"
    storage = storage_at(settings.storage_root)
    storage.write(f"{name}/{TOKEN_FILE}", name.encode())
    arguments = [f"{settings.storage_root.rstrip('/')}/{name}", settings.worker_url or "", settings.mlflow_uri or ""]
    entrypoint = shlex.join(["python", "-m", "syncnorm.trainer.driver.cluster_probe", *arguments])
    body = {"entrypoint": entrypoint, "submission_id": name, "entrypoint_resources": {DRIVER_RESOURCE: 1}}
    headers = {"Authorization": f"Bearer {ray_token()}"}
    try:
        with httpx.Client(base_url=settings.ray_address or "", headers=headers, trust_env=False, timeout=30) as ray:
            ray.post("/api/jobs/", json=body).raise_for_status()
            return _wait_for_report(ray, name, storage, wait_s)
    except httpx.HTTPError as error:
        raise ClusterUnreachableError(f"Ray did not accept the probe: {error}") from error
    finally:
        with contextlib.suppress(OSError):
            storage.remove(name)


def _wait_for_report(ray: httpx.Client, name: str, storage: Storage, wait_s: float) -> ClusterReport:
    deadline, report = time.monotonic() + wait_s, f"{name}/{REPORT_FILE}"
    while time.monotonic() < deadline:
        job = ray.get(f"/api/jobs/{name}").raise_for_status().json()
        if storage.has(report):
            return ClusterReport.model_validate_json(storage.read(report))
        if job["status"] in ("SUCCEEDED", "FAILED", "STOPPED"):
            why = job.get("message") or ray.get(f"/api/jobs/{name}/logs").json().get("logs", "")
            if lacks_our_program(why):
                raise OSError(OTHER_VERSION)
            raise OSError(f"the probe ended {job['status']} and left no report on the storage: {why[-400:]}")
        time.sleep(_POLL_S)
    ray.post(f"/api/jobs/{name}/stop")
    raise TimeoutError(f"the workers did not answer within {wait_s:g} s. See `docker compose logs ray-worker`.")
