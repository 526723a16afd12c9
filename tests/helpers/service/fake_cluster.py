"""Ray's Jobs API and MLflow's REST over HTTP, in this process: what lives on while services are killed.

Drivers are timers: they note their start in the attempt's folder and leave a result there.
"""

from __future__ import annotations

import json
import random
import shlex
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from syncnorm.trainer.contract.protocol import LAUNCH_FILE, RESULT_FILE, Launch, Result

WORK_S = (0.02, 1.0)
"""How long a driver works, at random."""


class FakeServers:
    """Both behind one address; state under one lock."""

    def __init__(self, work_s: tuple[float, float]) -> None:
        self._work_s = work_s
        self.lock = threading.Lock()
        self.submissions: dict[str, dict[str, Any]] = {}
        self.runs: dict[str, str] = {}
        """Status by run id."""
        self.run_of: dict[str, str] = {}
        self.is_away = False
        """Answers 503 to everything."""
        self.timers: list[threading.Timer] = []

    def answer(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        with self.lock:
            if self.is_away:
                return 503, {}
            if path == "/health":  # MLflow's
                return 200, {}
            if path.startswith("/api/2.0/mlflow/"):
                return self._mlflow(path.removeprefix("/api/2.0/mlflow/"), body)
            return self._ray(method, path, body)

    def _ray(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        usage = {"node-1": {"CPU": [0.0, 64.0]}}
        looks = {
            "/api/version": {"session_name": "session-1"},
            "/api/cluster_status": {"data": {"clusterStatus": {"loadMetricsReport": {"usageByNode": usage}}}},
            "/api/jobs/": list(self.submissions.values()),
        }
        if method == "POST" and path == "/api/jobs/":
            return self._submit(body)
        if path in looks:
            return 200, looks[path]
        name, _, verb = path.removeprefix("/api/jobs/").partition("/")
        if name not in self.submissions:
            return 404, {}
        if method == "DELETE":
            return self._delete(name)
        if verb == "stop" and self.submissions[name]["status"] == "RUNNING":
            self.submissions[name]["status"] = "STOPPED"
        return 200, self.submissions[name]

    def _delete(self, name: str) -> tuple[int, Any]:
        if self.submissions[name]["status"] == "RUNNING":
            return 500, {"error": f"Attempted to delete job '{name}', but it is in a non-terminal state RUNNING."}
        del self.submissions[name]
        return 200, {"deleted": True}

    def _submit(self, body: dict[str, Any]) -> tuple[int, Any]:
        name = body["submission_id"]
        if name in self.submissions:
            return 500, {"error": f"Job {name} already exists"}
        metadata = {
            "submission_id": name,
            "status": "RUNNING",
            "driver_node_id": "node-1",
            "metadata": body["metadata"],
        }
        self.submissions[name] = metadata
        folder = Path(shlex.split(body["entrypoint"])[-1])
        with (folder / "starts").open("a") as file:
            file.write("started\n")
        timer = threading.Timer(random.uniform(*self._work_s), self._work, (name, folder))
        self.timers.append(timer)
        timer.start()
        return 200, {}

    def _work(self, name: str, folder: Path) -> None:
        launch = Launch.model_validate_json((folder / LAUNCH_FILE).read_text())
        with self.lock:
            if self.submissions[name]["status"] != "RUNNING":
                return
            result = Result(fence=launch.fence, outcome="succeeded", step=1)
            beside = folder / ".result.new"
            beside.write_text(result.model_dump_json())
            beside.rename(folder / RESULT_FILE)
            self.submissions[name]["status"] = "SUCCEEDED"

    def _mlflow(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path == "experiments/get-by-name":
            return 200, {"experiment": {"experiment_id": "1"}}
        if path == "experiments/create":
            return 200, {"experiment_id": "1"}
        if path == "runs/search":
            job_id = body["filter"].split("'")[1]
            return 200, {"runs": [{"info": {"run_id": self.run_of[job_id]}}] if job_id in self.run_of else []}
        if path == "runs/create":
            job_id = body["tags"][0]["value"]
            run_id = self.run_of[job_id] = f"run-{len(self.run_of)}"
            self.runs[run_id] = "RUNNING"
            return 200, {"run": {"info": {"run_id": run_id}}}
        if path == "runs/update":
            self.runs[body["run_id"]] = body["status"]
            return 200, {"run_info": {"run_id": body["run_id"], "status": body["status"]}}
        return 200, {}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    servers: FakeServers

    def _serve(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.partition("?")[0]
        code, value = self.servers.answer(self.command, path, json.loads(raw) if raw else {})
        content = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PATCH = do_DELETE = _serve  # noqa: N815  # names of the standard library

    def log_message(self, *_: object) -> None: ...


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """Callers are killed in the middle of requests; that is what this is for."""


@contextmanager
def fake_servers(
    work_s: tuple[float, float] = WORK_S, servers: FakeServers | None = None
) -> Iterator[tuple[FakeServers, str]]:
    """(state, URL). servers: None makes ones whose drivers work for work_s."""
    servers = servers or FakeServers(work_s)
    handler = type("Handler", (_Handler,), {"servers": servers})
    with _Server(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield servers, f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
            for timer in servers.timers:
                timer.cancel()
                timer.join()
