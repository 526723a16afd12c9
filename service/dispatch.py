"""Starting, stopping and watching attempts on a Ray cluster, through the plain HTTP API of its dashboard.

Ray is a launcher that forgets and lies: everything here may be repeated, and nothing it answers is final by itself.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import httpx

from service.decide import RayStatus
from trainer.plan import NodeCapacity

DRIVER_RESOURCE = "syncnorm_driver"
"""Custom resource of the nodes that may run drivers; each driver takes one of it and no CPU."""
Kind = Literal["attempt", "export"]
Entrypoints = Mapping[Kind, str]
"""Command of each kind of submission, to which its folder is added."""
ENTRYPOINTS: Entrypoints = {"attempt": "python -m trainer.main", "export": "python -m trainer.again"}
_STATUS = {
    "PENDING": RayStatus.WAITING,
    "RUNNING": RayStatus.RUNNING,
    "SUCCEEDED": RayStatus.ENDED,
    "FAILED": RayStatus.ENDED,
    "STOPPED": RayStatus.ENDED,
}


class ClusterUnreachableError(Exception):
    """Ray can't be asked right now. Says nothing about the jobs on it."""


@dataclass(frozen=True)
class Submission:
    """What Ray says of one of our submissions. message: why it ended, in Ray's words."""

    status: RayStatus
    node_id: str | None = None
    message: str = ""


@dataclass(frozen=True)
class View:
    """One look at the cluster. session: its identity; another session knows nothing of earlier submissions."""

    session: str
    nodes: tuple[NodeCapacity, ...]
    submissions: Mapping[str, Submission]

    @property
    def capacity(self) -> tuple[NodeCapacity, ...] | None:
        """The hosts; None while they have not told yet what they have, as in the first seconds of a cluster."""
        return self.nodes if any(node.cpus or node.gpus for node in self.nodes) else None


class Dispatcher(Protocol):
    """Port to a cluster. Every method raises ClusterUnreachableError when it can't be asked."""

    def look(self) -> View: ...

    def start(self, submission_id: str, folder: str, kind: Kind = "attempt") -> None:
        """Start the driver of an attempt, or a later export; an id that is known already is left alone."""

    def end(self, submission_id: str) -> None:
        """End the processes of a submission (SIGTERM, then SIGKILL); an unknown or ended one is left alone."""


class RayDispatcher:
    """The Ray adapter. url: the dashboard's; token: for RAY_AUTH_MODE=token; owner: marks our submissions."""

    def __init__(
        self,
        url: str,
        token: str | None = None,
        entrypoints: Entrypoints = ENTRYPOINTS,
        *,
        owner: str = "syncnorm",
        timeout_s: float = 10,
    ) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout_s, trust_env=False)
        self._entrypoints = entrypoints
        self._owner = owner

    def look(self) -> View:
        session = self._get("/api/version")["session_name"]
        usage = self._get("/api/cluster_status")["data"]["clusterStatus"]["loadMetricsReport"]["usageByNode"]
        submissions = {
            item["submission_id"]: Submission(
                _STATUS.get(item["status"], RayStatus.RUNNING), item.get("driver_node_id"), item.get("message") or ""
            )
            for item in self._get("/api/jobs/")
            if item.get("submission_id") and (item.get("metadata") or {}).get("syncnorm") == self._owner
        }
        return View(session, tuple(_node(node_id, used) for node_id, used in usage.items()), submissions)

    def start(self, submission_id: str, folder: str, kind: Kind = "attempt") -> None:
        if self._request("GET", f"/api/jobs/{submission_id}").status_code == httpx.codes.OK:
            return
        body = {
            # Goes through a shell: one constant command and one quoted path, nothing from the spec.
            "entrypoint": f"{self._entrypoints[kind]} {shlex.quote(folder)}",
            "submission_id": submission_id,
            "entrypoint_num_cpus": 0,
            "entrypoint_resources": {DRIVER_RESOURCE: 1},
            "metadata": {"syncnorm": self._owner},
        }
        answer = self._request("POST", "/api/jobs/", json=body)
        # Ray answers a repeated submission_id with 500 and a traceback (ray 2.60).
        if answer.is_error and "already exists" not in answer.text:
            raise ClusterUnreachableError(f"Ray refused {submission_id}: {answer.status_code} {answer.text[-400:]}")

    def end(self, submission_id: str) -> None:
        answer = self._request("POST", f"/api/jobs/{submission_id}/stop")
        if answer.is_error and answer.status_code != httpx.codes.NOT_FOUND:
            raise ClusterUnreachableError(
                f"Ray did not stop {submission_id}: {answer.status_code} {answer.text[-400:]}"
            )

    def close(self) -> None:
        self._http.close()

    def _get(self, path: str) -> Any:
        answer = self._request("GET", path)
        if answer.is_error:
            raise ClusterUnreachableError(f"Ray answered {answer.status_code} to {path}")
        return answer.json()

    def _request(self, method: str, path: str, json: Any = None) -> httpx.Response:
        try:
            return self._http.request(method, path, json=json)
        except httpx.HTTPError as error:
            raise ClusterUnreachableError(f"Ray can't be reached at {self._http.base_url}: {error}") from error


def _node(node_id: str, used: Mapping[str, Any]) -> NodeCapacity:
    cpu_used, cpus = used.get("CPU", (0.0, 0.0))
    gpu_used, gpus = used.get("GPU", (0.0, 0.0))
    return NodeCapacity(node_id, cpus, gpus, cpus - cpu_used, gpus - gpu_used, _address(used))


def _address(used: Mapping[str, Any]) -> str | None:
    """Ray gives each host a resource of its address, and the head another of its own."""
    names = (name.removeprefix("node:") for name in used if name.startswith("node:"))
    return next((name for name in names if not name.lower().strip("_").startswith("internal")), None)
