"""Starts, stops and observes attempts on a Ray cluster, through the HTTP API of its dashboard.

Ray forgets and can be wrong: every call here may be repeated, and no answer is final by itself.
"""

from __future__ import annotations

import logging
import os
import queue
import shlex
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from pydantic import TypeAdapter

from syncnorm.service.backend_errors import RefusedError, UnexpectedAnswerError, UnreachableError
from syncnorm.service.background.outage_log import OutageLog
from syncnorm.service.integrations.http_client import HttpClient, HttpRequest, HttpResponse
from syncnorm.service.integrations.ray_answers import CLUSTER, RECORD, RECORDS, VERSION, Record, nodes_of, records_of
from syncnorm.service.jobs.attempt_ending import RayStatus
from syncnorm.trainer.contract.plan import NodeCapacity
from syncnorm.trainer.forkserver.launcher import SWITCH

logger = logging.getLogger(__name__)
T = TypeVar("T")

DRIVER_RESOURCE = "syncnorm_driver"
"""Custom resource of the nodes that may run drivers; each driver takes one of it and no CPU."""
Kind = Literal["attempt", "export"]
Entrypoints = Mapping[Kind, str]
"""Command of each kind of submission, to which its folder is added."""
ENTRYPOINTS: Entrypoints = {
    "attempt": "python -m syncnorm.trainer.driver.main",
    "export": "python -m syncnorm.trainer.driver.reexport",
}
_STATUS = {
    "PENDING": RayStatus.WAITING,
    "RUNNING": RayStatus.RUNNING,
    "SUCCEEDED": RayStatus.ENDED,
    "FAILED": RayStatus.ENDED,
    "STOPPED": RayStatus.ENDED,
}
_REFUSALS = {400, 409, 413, 422}
_NOT_FOUND = 404
_LIST_S = 120.0
"""Ray takes 3 s to list 20,000 ended submissions on an idle host, and ten times that on a busy head (ray 2.60)."""
_LIST_BYTES = 256 * 2**20
_JSON_OBJECT = TypeAdapter(dict[str, Any])

ClusterUnreachableError = UnreachableError
"""Raised by every method while Ray is unavailable. It says nothing about the jobs on Ray."""


@dataclass(frozen=True)
class Submission:
    """Ray's state of one of our submissions. message: why it ended, in Ray's words."""

    status: RayStatus
    node_id: str | None = None
    message: str = ""


@dataclass(frozen=True)
class ClusterState:
    """One observation of the cluster. session: its identity; another session knows nothing of earlier submissions."""

    session: str
    nodes: tuple[NodeCapacity, ...]
    submissions: Mapping[str, Submission]

    @property
    def capacity(self) -> tuple[NodeCapacity, ...] | None:
        """The hosts; None until they have reported their capacity, as in the first seconds of a cluster."""
        return self.nodes if any(node.cpus or node.gpus for node in self.nodes) else None


class Dispatcher(Protocol):
    """Port to a cluster. Every method but `forget` raises UnreachableError while the cluster is unavailable."""

    def observe(self) -> ClusterState: ...

    def start(self, submission_id: str, folder: str, kind: Kind = "attempt") -> None:
        """Start the driver of an attempt, or a later export; a known id is left alone.

        Raises: RefusedError for a submission that the cluster will never accept.
        """

    def end(self, submission_id: str) -> None:
        """End the processes of a submission (SIGTERM, then SIGKILL); an unknown or ended one is left alone."""

    def forget(self, submission_id: str) -> None:
        """The record of this ended submission is no longer needed. Returns at once; the record is deleted soon."""


class RayDispatcher:
    """The Ray adapter. Ray keeps the record of every submission until it is deleted, and lists them more slowly the
    more there are.

    So `look` asks for those that `known` names, a few milliseconds each, and a `ClusterSweep` lists them all now and
    then: it deletes ended ones, and finds `strays`.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        entrypoints: Entrypoints = ENTRYPOINTS,
        *,
        owner: str = "syncnorm",
        timeout_s: float = 10,
        known: Callable[[], Collection[str]] | None = None,
        warm: bool = False,
    ) -> None:
        """url: the dashboard's; token: for RAY_AUTH_MODE=token; owner: marks our submissions. warm: their processes may
        be forked from a node's parent.

        known: the submissions that `observe` is about; None: all of ours, which takes a list.
        """
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = HttpClient("Ray", url, headers=headers, total_s=timeout_s)
        self._entrypoints = entrypoints
        self._owner = owner
        self._known = known
        self._warm = {"runtime_env": {"env_vars": {SWITCH: "1"}}} if warm else {}
        self._outage_log = OutageLog(logger)
        self.forgotten: queue.SimpleQueue[str] = queue.SimpleQueue()
        """What a sweep should delete next."""
        self.strays: frozenset[str] = frozenset()
        """Running submissions of ours that were unknown at the last sweep."""

    def observe(self) -> ClusterState:
        version, cluster = (_kept(one) for one in self._http.ask_all([_get("/api/version"), _CLUSTER_STATUS]))
        session = _parsed(version, VERSION).session_name
        nodes = nodes_of(_parsed(cluster, CLUSTER), self._note)
        if self._known is None:
            return ClusterState(session, nodes, self.list_all())
        return ClusterState(session, nodes, self._ask_for({*self._known(), *self.strays}))

    def list_all(self) -> dict[str, Submission]:
        """Every submission of ours that Ray has a record of. Takes seconds where there are thousands."""
        answer = self._http.ask(_get("/api/jobs/"), total_s=_LIST_S, most_bytes=_LIST_BYTES)
        found = records_of(_parsed(answer, RECORDS), self._owner, self._note)
        return {record.submission_id: _submission(record) for record in found}

    def start(self, submission_id: str, folder: str, kind: Kind = "attempt") -> None:
        if self._is_known(submission_id):
            return
        body = {
            # Goes through a shell: one constant command and one quoted path, nothing from the spec.
            "entrypoint": f"{self._entrypoints[kind]} {shlex.quote(folder)}",
            "submission_id": submission_id,
            "entrypoint_num_cpus": 0,
            "entrypoint_resources": {DRIVER_RESOURCE: 1},
            "metadata": {"syncnorm": self._owner},
            **self._warm,
        }
        answer = self._http.ask(HttpRequest("POST", "/api/jobs/", json=body))
        # Ray answers a repeated submission_id with 500 and a traceback (ray 2.60).
        if "already exists" in answer.excerpt:
            return
        if answer.status in _REFUSALS and not answer.is_page:
            raise RefusedError(f"Ray refused {submission_id}: {answer.status} {answer.excerpt}", answer.status)
        if not answer.is_success:
            raise UnreachableError(f"Ray did not accept {submission_id}: {answer.status} {answer.excerpt}")
        if _parsed(answer, _JSON_OBJECT).get("submission_id") != submission_id and not self._is_known(submission_id):
            raise UnexpectedAnswerError(f"Ray accepted {submission_id}, but does not list it: {answer.excerpt[:80]!r}")

    def end(self, submission_id: str) -> None:
        answer = self._http.ask(HttpRequest("POST", f"/api/jobs/{submission_id}/stop"))
        if not _is_missing(answer):
            _parsed(answer, _JSON_OBJECT)

    def forget(self, submission_id: str) -> None:
        self.forgotten.put(submission_id)

    def delete(self, submission_id: str) -> bool:
        """Delete the record of an ended submission; whether it is gone. Ray refuses it for one that is not over."""
        answer = self._http.ask(HttpRequest("DELETE", f"/api/jobs/{submission_id}"))
        if "non-terminal state" in answer.excerpt:
            return False
        if not _is_missing(answer):
            _parsed(answer, _JSON_OBJECT)
        return True

    def close(self) -> None:
        self._http.close()

    def _is_known(self, submission_id: str) -> bool:
        answer = self._http.ask(_get(f"/api/jobs/{submission_id}"))
        if _is_missing(answer):
            return False
        return _parsed(answer, RECORD).submission_id == submission_id

    def _ask_for(self, names: Collection[str]) -> dict[str, Submission]:
        """The submissions that Ray knows. One whose state can't be read counts as unreachable, because unknown would
        mean that it is gone."""
        ordered = sorted(names)
        answers = self._http.ask_all([_get(f"/api/jobs/{name}") for name in ordered])
        found = {name: self._read(name, answer) for name, answer in zip(ordered, answers, strict=True)}
        return {name: submission for name, submission in found.items() if submission is not None}

    def _read(self, name: str, answer: HttpResponse | UnreachableError) -> Submission | None:
        what = f"submission {name}"
        try:
            if _is_missing(kept := _kept(answer)):
                return None
            submission = _submission(_parsed(kept, RECORD))
        except UnreachableError as error:
            self._note(what, str(error))
            return Submission(RayStatus.UNREACHABLE)
        self._outage_log.recovered(what)
        return submission

    def _note(self, what: str, why: str) -> None:
        self._outage_log.failed(
            what, "an entry of Ray's answer can't be read and counts as unknown", what=what, error=why
        )


def ray_token() -> str:
    """The token as Ray itself would find it, or an empty one."""
    if path := os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return Path(path).read_text().strip()
    return os.environ.get("RAY_AUTH_TOKEN", "")


def _get(path: str) -> HttpRequest:
    return HttpRequest("GET", path)


_CLUSTER_STATUS = _get("/api/cluster_status")


def _kept(answer: HttpResponse | UnreachableError) -> HttpResponse:
    if isinstance(answer, UnreachableError):
        raise answer
    return answer


def _parsed(answer: HttpResponse, kind: TypeAdapter[T]) -> T:
    """Raises: UnreachableError for any status but 2xx; UnexpectedAnswerError for another content."""
    if not answer.is_success:
        raise UnreachableError(f"{answer.source} answered {answer.status}: {answer.excerpt}")
    return answer.parsed(kind)


def _is_missing(answer: HttpResponse) -> bool:
    """Whether Ray, and not a proxy in its place, says that it has no such submission."""
    return answer.status == _NOT_FOUND and not answer.is_page


def _submission(record: Record) -> Submission:
    # A status that we don't know is no evidence of anything.
    status = _STATUS.get(record.status, RayStatus.UNREACHABLE)
    return Submission(status, record.driver_node_id, record.message or "")
