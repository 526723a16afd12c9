"""Ray, MLflow and a receiver of webhooks behind one local HTTP server, whose answers can be bent.

Ray's Jobs API is put in front of `tests.helpers.fakes.FakeCluster`. MLflow is a dictionary that keeps MLflow's own
rules (`mlflow.utils.validation`).
"""

from __future__ import annotations

import json
import shlex
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import ModuleType
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from syncnorm.service.integrations.ray_jobs import Kind
from syncnorm.service.jobs.attempt_ending import RayStatus
from tests.helpers.fakes import FakeCluster

HttpResponse = tuple[int, Any]
"""Status and JSON."""
_API = "/api/2.0/mlflow/"
_WORDS = {RayStatus.WAITING: "PENDING", RayStatus.RUNNING: "RUNNING", RayStatus.ENDED: "SUCCEEDED"}


@dataclass(frozen=True)
class Request:
    """endpoint: `ray:jobs`, `mlflow:runs/create`, `hook:NAME`. about: everything sent, to find out whose it is."""

    method: str
    endpoint: str
    name: str
    """Of the submission or receiver."""
    body: dict[str, Any]
    about: str


Bend = Callable[["Handler", Callable[[], HttpResponse]], None]
"""Answers a request in place of the server; the second argument carries it out and gives the right answer."""


class Ray:
    """Ray's dashboard over a cluster in memory."""

    def __init__(self, cluster: FakeCluster) -> None:
        self.cluster = cluster
        self.history: list[dict[str, Any]] = []
        """Submissions of former days, as Ray lists them."""
        self.deleted: set[str] = set()
        self._owners: dict[str, str] = {}

    def answer(self, request: Request) -> HttpResponse:
        kind = request.endpoint.removeprefix("ray:")
        if not self.cluster.reachable:
            return 503, {}
        if kind == "version":
            return 200, {"version": "4", "ray_version": "2.60.0", "session_name": self.cluster.session}
        if kind == "cluster_status":
            return 200, {"result": True, "msg": "Got cluster status.", "data": {"clusterStatus": self._status()}}
        if kind == "submit":
            return self._submit(request.body)
        if kind == "jobs":
            return 200, [*self.history, *map(self._shown, self.cluster.submissions)]
        return self._one(kind, request.name)

    def _status(self) -> dict[str, Any]:
        usage = {
            name: {"CPU": [0.0, cpus], "GPU": [0.0, gpus], "memory": [0.0, 2.0**34], f"node:{name}": [0.0, 1.0]}
            for name, cpus, gpus in self.cluster.nodes
        }
        return {"loadMetricsReport": {"usage": {"CPU": [0.0, 1.0]}, "usageByNode": usage}}

    def _shown(self, name: str) -> dict[str, Any]:
        item = self.cluster.submissions[name]
        return listed(name, _WORDS[item.status], item.node_id, self._owners.get(name, ""))

    def _submit(self, body: dict[str, Any]) -> HttpResponse:
        name = body["submission_id"]
        if name in self.cluster.submissions:
            return 500, {"error": f"Job {name} already exists"}
        self._owners[name] = body["metadata"]["syncnorm"]
        kind: Kind = "export" if "syncnorm.trainer.driver.reexport" in body["entrypoint"] else "attempt"
        self.cluster.start(name, shlex.split(body["entrypoint"])[-1], kind)
        return 200, {"job_id": name, "submission_id": name}

    def _one(self, kind: str, name: str) -> HttpResponse:
        old = {item["submission_id"]: item for item in self.history}
        if name not in self.cluster.submissions and name not in old:
            return 404, {}
        if kind == "stop" and name in self.cluster.submissions:
            self.cluster.end(name)
            return 200, {"stopped": True}
        if kind == "delete" and name not in old and self.cluster.submissions[name].status is not RayStatus.ENDED:
            return 500, {"error": f"Attempted to delete job {name}, but it is in a non-terminal state"}
        if kind == "delete":
            self.deleted.add(name)
            self.history = [item for item in self.history if item["submission_id"] != name]
            self.cluster.submissions.pop(name, None)
            return 200, {"deleted": True}
        return 200, self._shown(name) if name in self.cluster.submissions else old[name]


def listed(name: str, status: str, node_id: str | None, owner: str) -> dict[str, Any]:
    """An item of Ray's list, with the fields Ray 2.60 gives."""
    return {
        "type": "SUBMISSION",
        "job_id": "01000000",
        "submission_id": name,
        "driver_info": None,
        "status": status,
        "entrypoint": f"python -m syncnorm.trainer.driver.main '/storage/jobs/{name}'",
        "message": "Job finished successfully." if status == "SUCCEEDED" else "Currently running.",
        "error_type": None,
        "start_time": 1_790_000_000_000,
        "end_time": 1_790_000_060_000 if status == "SUCCEEDED" else None,
        "metadata": {"syncnorm": owner},
        "runtime_env": {},
        "driver_agent_http_address": "http://127.0.0.1:52365",
        "driver_node_id": node_id,
        "driver_exit_code": 0 if status == "SUCCEEDED" else None,
    }


class Mlflow:
    """Runs in a dictionary, under MLflow's own rules."""

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        self.experiments: dict[str, str] = {}

    def answer(self, request: Request) -> HttpResponse:
        path = request.endpoint.removeprefix("mlflow:")
        if path == "health":
            return 200, "OK"
        if path == "artifacts":
            return 200, {}
        try:
            return self._answer(path, request.body)
        except rules().MlflowException as error:
            return 400, {"error_code": "INVALID_PARAMETER_VALUE", "message": str(error)}
        except KeyError as missing:
            return 404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": f"No {missing}."}

    def _answer(self, path: str, body: dict[str, Any]) -> HttpResponse:  # noqa: PLR0911
        if path == "experiments/get-by-name":
            experiment_id = self.experiments[body["experiment_name"]]
            return 200, {"experiment": {"experiment_id": experiment_id, "name": body["experiment_name"]}}
        if path == "experiments/create":
            rules()._validate_experiment_name(body["name"])
            return 200, {"experiment_id": self.experiments.setdefault(body["name"], str(len(self.experiments) + 1))}
        if path == "runs/search":
            wanted = body["filter"].split("'")[1]
            found = [run for run in self.runs.values() if wanted in run["tags"].values()]
            return 200, {"runs": [{"info": run["info"]} for run in found]} if found else {}
        if path == "runs/create":
            return self._create(body)
        if path == "experiments/set-experiment-tag":
            rules()._validate_experiment_tag(body["key"], body["value"])
            return 200, {}
        run = self.runs[body["run_id"]]
        if path == "runs/log-batch":
            self._log(run, body)
        elif path == "runs/set-tag":
            rules()._validate_tag(body["key"], body["value"])
            run["tags"][body["key"]] = body["value"]
        elif path == "runs/update":
            run["info"]["status"] = body["status"]
            return 200, {"run_info": run["info"]}
        elif path == "metrics/get-history":
            return 200, {"metrics": [point for point in run["metrics"] if point["key"] == body["metric_key"]]}
        elif path == "runs/get":
            return 200, {"run": {"info": run["info"], "data": {"metrics": run["metrics"]}}}
        return 200, {}

    def _create(self, body: dict[str, Any]) -> HttpResponse:
        run_id = f"{len(self.runs) + 1:032x}"
        info = {"run_id": run_id, "run_name": body["run_name"], "status": "RUNNING", "artifact_uri": _artifacts(run_id)}
        tags = {tag["key"]: tag["value"] for tag in body["tags"]}
        drift = {"key": "norm/bn1/drift", "value": 0.5, "step": 1, "timestamp": 1}
        self.runs[run_id] = {"info": info, "tags": tags, "params": {}, "metrics": [drift]}
        return 200, {"run": {"info": info, "data": {}}}

    def _log(self, run: dict[str, Any], body: dict[str, Any]) -> None:
        batch = [[_Pair(**item) for item in body.get(what, [])] for what in ("metrics", "params", "tags")]
        metrics, params, tags = rules()._validate_batch_log_data(*batch)
        rules()._validate_batch_log_limits(metrics, params, tags)
        rules()._validate_param_keys_unique(params)
        for param in params:
            if run["params"].setdefault(param.key, param.value) != param.value:
                raise rules().MlflowException(f"Changing param values is not allowed: {param.key!r}")
        run["tags"] |= {tag.key: tag.value for tag in tags}


@dataclass
class _Pair:
    key: str
    value: Any
    timestamp: int = 0
    step: int = 0


def _artifacts(run_id: str) -> str:
    return f"mlflow-artifacts:/1/{run_id}/artifacts"


@cache
def rules() -> ModuleType:
    from mlflow.utils import validation

    return validation


@dataclass
class Outside:
    """What the service meets on its other side."""

    ray: Ray
    mlflow: Mlflow = field(default_factory=Mlflow)
    bend: Callable[[Request], Bend | None] = lambda _request: None
    """Called for each request; None: the right answer."""
    received: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Webhooks by receiver, those refused included."""
    calls: list[Request] = field(default_factory=list)
    samples: dict[str, Any] = field(default_factory=dict)
    """The last good answer by endpoint."""
    lock: threading.RLock = field(default_factory=threading.RLock)
    closing: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    def right(self, request: Request) -> HttpResponse:
        with self.lock:
            code, content = self._answer(request)
            if code == 200:
                self.samples[request.endpoint] = content
            return code, content

    def _answer(self, request: Request) -> HttpResponse:
        if request.endpoint.startswith("ray:"):
            return self.ray.answer(request)
        if request.endpoint.startswith("mlflow:"):
            return self.mlflow.answer(request)
        return 200, {}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    outside: Outside

    def _serve(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        request = _read(self.command, self.path, raw)
        with self.outside.lock:
            self.outside.calls.append(request)
            if request.endpoint.startswith("hook:"):
                self.outside.received.setdefault(request.name, []).append(request.body)
            bend = self.outside.bend(request)
        if bend is not None:
            bend(self, lambda: self.outside.right(request))
            return
        code, value = self.outside.right(request)
        self.send(code, json.dumps(value).encode())

    def send(self, code: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        """headers: instead of Content-Length and Content-Type, or besides."""
        self.send_response(code)
        usual = {"Content-Type": "application/json", "Content-Length": str(len(content))}
        for name, value in (usual | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if code != 204:
            self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815  # names of the standard library

    def log_message(self, *_: object) -> None: ...


def _read(method: str, target: str, raw: bytes) -> Request:
    split = urlsplit(target)
    is_json = raw[:1] == b"{"
    body = json.loads(raw) if is_json else dict(parse_qsl(split.query))
    name, endpoint = "", split.path
    if split.path.startswith(_API):
        endpoint = "mlflow:" + split.path.removeprefix(_API)
    elif split.path.startswith("/api/2.0/mlflow-artifacts"):
        endpoint = "mlflow:artifacts"
    elif split.path == "/health":
        endpoint = "mlflow:health"
    elif split.path.startswith("/hook/"):
        name = split.path.removeprefix("/hook/")
        endpoint = f"hook:{name}"
    else:
        endpoint, name = _ray_endpoint(method, split.path, body)
    return Request(method, endpoint, name, body, f"{target} {raw.decode(errors='replace')}")


def _ray_endpoint(method: str, path: str, body: dict[str, Any]) -> tuple[str, str]:
    rest = path.removeprefix("/api/").strip("/")
    if rest in ("version", "cluster_status"):
        return f"ray:{rest}", ""
    name, _, verb = rest.removeprefix("jobs").strip("/").partition("/")
    if not name:
        return ("ray:submit", str(body.get("submission_id"))) if method == "POST" else ("ray:jobs", "")
    return f"ray:{verb or ('delete' if method == 'DELETE' else 'job')}", name


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *_: object) -> None:
        """Callers give up in the middle of answers; that is what some of these are for."""


@contextmanager
def served(cluster: FakeCluster) -> Iterator[Outside]:
    rules()  # takes seconds at first, which no call should wait for
    outside = Outside(Ray(cluster))
    with _Server(("127.0.0.1", 0), type("Bound", (Handler,), {"outside": outside})) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        outside.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield outside
        finally:
            outside.closing.set()
            server.shutdown()
            thread.join()
