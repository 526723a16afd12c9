"""The Python client: one method a verb of the API.

from syncnorm.service.client.client import Client

job = Client().submit({"name": "digits", "model": {"name": "resnet"}, "data": {"name": "digits", "batch_size": 32}})
"""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from syncnorm.service.client.addresses import api_path, checked_token, find_service, timeout_s
from syncnorm.service.client.client_errors import (
    ClientError,
    DamagedFileError,
    Json,
    NotSyncnormError,
    ProblemError,
    ServiceTimeoutError,
    ServiceUnreachableError,
    UsageError,
)
from syncnorm.service.client.connection import Connection
from syncnorm.service.client.transfers import OnProgress, RemoteFile, fetch, file_address, place_for

__all__ = [
    "TERMINAL",
    "Client",
    "ClientError",
    "DamagedFileError",
    "NotSyncnormError",
    "ProblemError",
    "ServiceTimeoutError",
    "ServiceUnreachableError",
    "UsageError",
]

T = TypeVar("T")
TERMINAL = ("succeeded", "failed", "cancelled")
TIMEOUT_S = 30.0
_SLOW_S = 180.0
"""For plans, which build a model in a separate process, and for uploads."""
_POLL_PROFILE_S = 5.0
_REPORT_TYPES = {"html": "text/html", "png": "image/png", "json": "application/json", "csv": "text/csv"}
_JOB, _EXPORT = ("id", "state"), ("name", "state")
_Filter = str | int | Sequence[str] | None
POLL_S = 1.0
JobRef = str | Mapping[str, Any]
"""A job by its id, or as the service shows it."""


def id_of(job: JobRef) -> str:
    return job if isinstance(job, str) else str(job["id"])


class Client:
    """One service, and a method for each of its operations.

    url: SYNCNORM_URL, or the service of the state folder (SYNCNORM_HOME, else .syncnorm), or http://127.0.0.1:8000
    where no folder is named.
    token: SYNCNORM_TOKEN. timeout_s: for an answer; SYNCNORM_TIMEOUT, or 30, and 180 for plans and uploads.

    Raises: UsageError for an address, token or timeout that can't be one. Every method raises ClientError, of which
    `syncnorm.service.client.client_errors` shows the kinds.
    """

    def __init__(self, url: str | None = None, token: str | None = None, timeout_s: float | None = None) -> None:
        self._timeout_s = timeout_s
        self.connection = Connection(find_service(url), checked_token(token), self._limit_s(TIMEOUT_S))

    @property
    def url(self) -> str:
        """The address of the service."""
        return self.connection.url

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. `with Client() as client:` does it for you."""
        self.connection.http.close()

    def submit(self, spec: Mapping[str, Any], *, key: str | None = None) -> Json:
        """Submit a job exactly once: if the answer is lost, the request is repeated under the same key."""
        return self._once(api_path("jobs"), spec, key)

    def submit_study(self, spec: Mapping[str, Any], *, key: str | None = None) -> Json:
        """Submit a study exactly once, with all its jobs."""
        return self._once(api_path("studies"), spec, key)

    def plan_study(self, spec: Mapping[str, Any]) -> Json:
        """The jobs of a study, without submitting it. Give the spec of one to `plan` for its plan."""
        params, limit_s = {"dry_run": "true"}, self._limit_s(_SLOW_S)
        path = api_path("studies")
        return self._json("POST", path, json=dict(spec), params=params, timeout_s=limit_s, needs=("spec", "jobs"))

    def _once(self, path: str, body: Mapping[str, Any], key: str | None, needs: tuple[str, ...] = _JOB) -> Json:
        headers = {"Idempotency-Key": key or uuid.uuid4().hex}
        return self._json("POST", path, json=dict(body), headers=headers, repeatable=True, needs=needs)

    def plan(self, spec: Mapping[str, Any]) -> Json:
        """What a job comes to, without submitting it."""
        params, limit_s = {"dry_run": "true"}, self._limit_s(_SLOW_S)
        return self._json("POST", api_path("jobs"), json=dict(spec), params=params, timeout_s=limit_s, needs=("spec",))

    def job(self, job_id: str) -> Json:
        """A job as it is now."""
        return self._json("GET", api_path("jobs", job_id), needs=_JOB)

    def jobs(self, **filters: _Filter) -> Iterator[Json]:
        """All jobs that match, newest first, page by page. limit: size of a page."""
        return self._pages(api_path("jobs"), {key: value for key, value in filters.items() if value is not None})

    def _pages(self, path: str, params: Mapping[str, Any]) -> Iterator[Json]:
        cursor: dict[str, str] = {}
        while True:
            page = self._json("GET", path, params={**params, **cursor}, needs=("items", "next_cursor"))
            yield from page["items"]
            if page["next_cursor"] is None:
                return
            cursor = {"cursor": page["next_cursor"]}

    def _items(self, path: str) -> list[Json]:
        found: list[Json] = self._json("GET", path, needs=("items",))["items"]
        return found

    def attempts(self, job_id: str) -> list[Json]:
        """All attempts of a job, the first one first."""
        return self._items(api_path("jobs", job_id, "attempts"))

    def stacks(self, job_id: str, wait_s: float = 3) -> Json:
        """What every process of a job is doing now, or was doing when somebody asked last. wait_s: how long to wait
        for their answers."""
        return self._json(
            "GET", api_path("jobs", job_id, "stacks"), params={"wait_s": wait_s}, needs=("items", "silent")
        )

    def profile(
        self,
        job_id: str,
        seconds: float = 5,
        *,
        steps: int | None = None,
        ranks: Sequence[int] | None = None,
    ) -> Json:
        """Profile some seconds, or steps, of a running job: what each normalization layer takes of a step, and the path
        of each rank's trace. Returns once every rank has answered, or will not. ranks: None means all, at most 16."""
        body = {"seconds": seconds, "steps": steps, "ranks": None if ranks is None else list(ranks)}
        path = api_path("jobs", job_id, "profile")
        found = self._json("POST", path, json=body, needs=("items", "pending"))
        while found["pending"]:
            found = self.persist(lambda: self.last_profile(job_id, _POLL_PROFILE_S))
        return found

    def last_profile(self, job_id: str, wait_s: float = 0) -> Json:
        """The profile of a job that was asked for last, as it is now. wait_s: how long to wait for pending ranks."""
        path, params = api_path("jobs", job_id, "profile"), {"wait_s": wait_s}
        return self._json("GET", path, params=params, needs=("items", "pending"))

    def cancel(self, job_id: str) -> Json:
        """Ask a job to end, with a checkpoint. You can retry it later."""
        return self._ask(job_id, "cancel")

    def pause(self, job_id: str) -> Json:
        """Ask a job to stop with a checkpoint and free its resources until you resume it."""
        return self._ask(job_id, "pause")

    def resume(self, job_id: str) -> Json:
        """Put a paused job back into the queue. It continues from its last step."""
        return self._ask(job_id, "resume")

    def retry(self, job_id: str) -> Json:
        """Put a failed or cancelled job back into the queue. It continues from its last checkpoint."""
        return self._ask(job_id, "retry")

    def _ask(self, job_id: str, verb: str) -> Json:
        return self._json("POST", api_path("jobs", job_id, verb), needs=_JOB)

    def ask_many(
        self,
        verb: str,
        *,
        ids: Sequence[str] | None = None,
        where: Mapping[str, Any] | None = None,
        cursor: str | None = None,
    ) -> Json:
        """Apply a verb to many jobs, by ids or by a filter; an answer for each. verb: cancel, pause, resume or retry.

        where: state (a list), project, owner, norm, name, labels; {} means all that you may see. Up to 500 jobs a call:
        give the answer's `next_cursor` as cursor to continue a filter.
        """
        body = {"ids": list(ids)} if ids is not None else {"filter": dict(where or {}), "cursor": cursor}
        return self._json("POST", f"{api_path('jobs')}:{verb}", json=body, needs=("items",))

    def audit(self, **filters: str | None) -> Iterator[Json]:
        """Who did what, newest first, for admins. filters: actor, action, object, since, until."""
        return self._pages(api_path("audit"), {key: value for key, value in filters.items() if value is not None})

    def explain(self, job_id: str) -> Json:
        """Why a job waits, runs or stopped: code, message, shortfall, jobs_ahead, blockers, estimated_start."""
        return self._json("GET", api_path("jobs", job_id, "explain"), needs=("code", "message"))

    def change(
        self,
        job_id: str,
        *,
        priority: int | None = None,
        labels: Mapping[str, str] | None = None,
        limits: Mapping[str, float | None] | None = None,
    ) -> Json:
        """Change priority, labels or limits. limits: only those given change, while the job is queued, paused or
        failed.

        Raises: ProblemError 412 if the job changed at the same moment.
        """
        version = self.job(job_id)["version"]
        body: Json = {"priority": priority, "labels": None if labels is None else dict(labels)}
        body |= {} if limits is None else {"limits": dict(limits)}
        headers = {"If-Match": f'"{version}"'}
        return self._json("PATCH", api_path("jobs", job_id), json=body, headers=headers, needs=_JOB)

    def delete(self, job_id: str) -> None:
        """Delete a finished job with its checkpoints. Its MLflow run stays."""
        self.connection.empty("DELETE", api_path("jobs", job_id))

    def wait(self, job: JobRef, timeout_s: float | None = None) -> Json:
        """The job once it has succeeded, failed or was cancelled. job: its id, or the job as another method gave it.

        timeout_s: how long you wait; None: without end. Raises: ServiceTimeoutError when that time is over.
        """
        job_id, ends_at = id_of(job), None if timeout_s is None else time.monotonic() + timeout_s
        while (found := self.persist(lambda: self.job(job_id)))["state"] not in TERMINAL:
            left_s = POLL_S if ends_at is None else ends_at - time.monotonic()
            if left_s <= 0:
                raise ServiceTimeoutError(f"Job {job_id} is still {found['state']} after {timeout_s:g} s.")
            time.sleep(min(POLL_S, left_s))
        return found

    def files(self, job: JobRef, prefix: str = "") -> Iterator[Json]:
        """The files of a job, by path, page by page: path, kind, size_bytes, digest. prefix: as `export/`."""
        params = {"limit": 1000} | ({"prefix": prefix} if prefix else {})
        return self._pages(api_path("jobs", id_of(job), "files"), params)

    def download(
        self, job: JobRef, path: str, to: str | os.PathLike[str], *, on_progress: OnProgress | None = None
    ) -> Path:
        """Save a file of a job; returns where. to: the file to write, or a folder.

        A broken download is continued, also by the next call. The file appears once it is whole and has its digest. If
        it is there already, nothing is sent. on_progress: called with the bytes that are there, and the size.
        """
        address = file_address(id_of(job), path)

        def locate() -> RemoteFile:
            found = next((one for one in self.files(job, path) if one["path"] == path), None)
            if found is None:
                raise ProblemError({"status": 404, "code": "not_found", "detail": f"There is no file {path}."})
            return RemoteFile(address, found["size_bytes"], found["digest"])

        return fetch(self.connection, locate, place_for(path, to), on_progress)

    def checkpoints(self, job_id: str) -> list[Json]:
        """Complete checkpoints, the furthest first, with the metrics of each."""
        return self._items(api_path("jobs", job_id, "checkpoints"))

    def exports(self, job_id: str) -> list[Json]:
        """All exports of a job, its own first."""
        return self._items(api_path("jobs", job_id, "exports"))

    def export(
        self,
        job_id: str,
        *,
        formats: list[str] | None = None,
        fold: bool = True,
        register_as: str | None = None,
        checkpoint: str | int | None = None,
        statistics: str | None = None,
        module: str | None = None,
        key: str | None = None,
    ) -> Json:
        """Export a succeeded job again, exactly once, as `submit` does. formats: pt2, onnx; None: both.

        checkpoint: last, best or a step; statistics: auto, population or running; module: path of a submodule. None:
        the default of the spec's `export` section.
        """
        given = {"formats": formats, "checkpoint": checkpoint, "statistics": statistics, "module": module}
        body = {"fold": fold, "register_as": register_as} | {k: v for k, v in given.items() if v is not None}
        return self._once(api_path("jobs", job_id, "exports"), body, key, _EXPORT)

    def one_export(self, job_id: str, name: str) -> Json:
        """One export of a job by its name, as it is now."""
        return self._json("GET", api_path("jobs", job_id, "exports", name), needs=_EXPORT)

    def statistics(self, job_id: str) -> list[Json]:
        """Running statistics of each normalization layer over the steps, with drift and population statistics."""
        return self._items(api_path("jobs", job_id, "statistics"))

    def study(self, study_id: str) -> Json:
        """A study with its jobs and its comparison as it is now."""
        return self._json("GET", api_path("studies", study_id), needs=_JOB)

    def studies(self) -> Iterator[Json]:
        """All studies, newest first, page by page."""
        return self._pages(api_path("studies"), {})

    def ask_study(self, study_id: str, verb: str) -> Json:
        """Apply a verb to all jobs of a study: cancel, pause, resume or retry."""
        return self._json("POST", api_path("studies", study_id, verb), needs=_JOB)

    def add_seeds(self, study_id: str, seeds: Sequence[int]) -> Json:
        """Run every combination of a study with more seeds. Those that it has are left as they are."""
        body = {"seeds": list(seeds)}
        return self._json("POST", api_path("studies", study_id, "seeds"), json=body, repeatable=True, needs=_JOB)

    def study_report(self, study_id: str, form: str = "html", picture: str = "comparison") -> bytes:
        """form: html, png (of one picture: comparison, curves or heat_map), json or csv (the values of each job)."""
        params = {"format": form, "picture": picture}
        return self.connection.file(api_path("studies", study_id, "report"), _REPORT_TYPES.get(form, ""), params=params)

    def events(self, job_id: str) -> Iterator[Json]:
        """Everything that happened so far, oldest first."""
        return self._pages(api_path("jobs", job_id, "events"), {"limit": 1000})

    def norms(self) -> list[Json]:
        """The normalization kinds that a spec may name, with their traits and options."""
        return self._items(api_path("norms"))

    def models(self) -> list[Json]:
        """The built-in models, with their arguments."""
        return self._items(api_path("models"))

    def datasets(self) -> list[Json]:
        """The built-in data sets, with their arguments."""
        return self._items(api_path("datasets"))

    def cluster(self) -> Json:
        """The hosts of the cluster with their capacity, and the number of jobs in each state."""
        return self._json("GET", api_path("cluster"), needs=("nodes",))

    def create_token(self, owner: str, scopes: list[str], expires_at: str | None = None) -> Json:
        """Create a token. The answer holds the token itself, which is shown only once."""
        wanted = {"owner": owner, "scopes": scopes, "expires_at": expires_at}
        return self._json("POST", api_path("tokens"), json=wanted, needs=("token",))

    def tokens(self) -> list[Json]:
        """All tokens, without their secrets. For admins."""
        return self._items(api_path("tokens"))

    def revoke_token(self, token_id: str) -> None:
        """Revoke a token. It stops working at once."""
        self.connection.empty("DELETE", api_path("tokens", token_id))

    def put_package(self, archive: bytes) -> Json:
        """Upload a zip of code; the answer's `package` goes into a spec's `code`."""
        path = api_path("packages", hashlib.sha256(archive).hexdigest())
        headers = {"Content-Type": "application/zip"}
        limit_s, needs = self._limit_s(_SLOW_S), ("package",)
        return self._json(
            "PUT", path, content=archive, headers=headers, repeatable=True, timeout_s=limit_s, needs=needs
        )

    def put_secret(self, name: str, value: str) -> None:
        """Store a secret, which your specs name as `env: {VARIABLE: {secret: NAME}}`."""
        self.connection.empty("PUT", api_path("secrets", name), json={"value": value})

    def secrets(self) -> list[Json]:
        """The names of your secrets, never their values."""
        return self._items(api_path("secrets"))

    def delete_secret(self, name: str) -> None:
        """Delete a secret. Jobs that name it fail at their next attempt."""
        self.connection.empty("DELETE", api_path("secrets", name))

    def logs(self, job_id: str, **filters: str | int | None) -> Iterator[Json]:
        """The lines so far, oldest first. filters: attempt, rank, q (text they contain), tail (only the last lines)."""
        params = {key: value for key, value in filters.items() if value is not None}
        return self._pages(api_path("jobs", job_id, "logs"), {"limit": 1000, **params})

    def follow_logs(self, job_id: str, **filters: str | int | None) -> Iterator[Json]:
        """Every log line until the job is finished, each once, across lost connections. filters: as for `logs`."""
        params = {key: value for key, value in filters.items() if value is not None} | {"follow": "true"}
        return self._follow(api_path("jobs", job_id, "logs"), params, "line")

    def follow_events(self, job_id: str) -> Iterator[Json]:
        """Every event of the job until it is finished, each once, across lost connections."""
        return self._follow(api_path("jobs", job_id, "events"), {}, "event")

    def is_ready(self) -> bool:
        """Whether jobs can run now."""
        try:
            return self.connection.http.get("/readyz").status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    def persist(self, poll: Callable[[], T]) -> T:
        """What `poll` returns, asked for again while the service is away, for up to five minutes."""
        return self.connection.persist(poll)

    def _limit_s(self, default: float) -> float:
        return self._timeout_s or timeout_s(default)

    def _follow(self, path: str, params: Mapping[str, Any], kind: str) -> Iterator[Json]:
        return (event.data for event in self.connection.follow(path, params) if event.event == kind)

    def _json(self, method: str, path: str, **options: Any) -> Json:
        return self.connection.json(method, path, **options)
