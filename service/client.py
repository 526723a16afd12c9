"""The Python client: one method a verb of the API.

from service.client import Client

job = Client().submit({"name": "digits", "model": {"name": "resnet"}, "data": {"name": "digits", "batch_size": 32}})
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

Json = dict[str, Any]
TERMINAL = ("succeeded", "failed", "cancelled")


class ServiceUnreachableError(Exception):
    """Nobody answers at the service's address."""


class ProblemError(Exception):
    """The service refused. problem: the RFC 9457 answer."""

    def __init__(self, problem: Json) -> None:
        self.problem = problem
        self.status: int = problem.get("status", 0)
        self.code: str = problem.get("code", "")
        details = [f"{item['pointer']}: {item['detail']}" for item in problem.get("errors", [])]
        super().__init__("\n  ".join([problem.get("detail", "The service refused."), *details]))


@dataclass(frozen=True)
class StreamEvent:
    id: str
    event: str
    data: Any


class Client:
    """url: SYNCNORM_URL, or the service that runs on this host's state folder, or http://127.0.0.1:8000."""

    def __init__(self, url: str | None = None, token: str | None = None, timeout_s: float = 30) -> None:
        token = token or os.environ.get("SYNCNORM_TOKEN")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.url = (url or _find_service()).rstrip("/")
        self.pause_s = 0.2
        """Before a lost stream is taken up again; doubles with each failure in a row, up to 5 s."""
        self._http = httpx.Client(base_url=self.url, headers=headers, timeout=timeout_s, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def submit(self, spec: Mapping[str, Any], *, key: str | None = None) -> Json:
        """Submit once, whatever happens on the way: a lost answer is asked for again under the same key."""
        return self._once("/v1/jobs", spec, key)

    def submit_study(self, spec: Mapping[str, Any], *, key: str | None = None) -> Json:
        """As `submit`, for a study: all its jobs, once."""
        return self._once("/v1/studies", spec, key)

    def _once(self, path: str, body: Mapping[str, Any], key: str | None) -> Json:
        headers = {"Idempotency-Key": key or uuid.uuid4().hex}
        for wait_s in (0.2, 1.0, None):
            try:
                return self._json("POST", path, json=dict(body), headers=headers)
            except ServiceUnreachableError:
                if wait_s is None:
                    raise
                time.sleep(wait_s)
        raise AssertionError

    def plan(self, spec: Mapping[str, Any]) -> Json:
        return self._json("POST", "/v1/jobs", json=dict(spec), params={"dry_run": "true"})

    def job(self, job_id: str) -> Json:
        return self._json("GET", f"/v1/jobs/{job_id}")

    def jobs(self, **filters: str | int | None) -> Iterator[Json]:
        """All jobs that match, newest first, page by page."""
        return self._pages("/v1/jobs", {key: value for key, value in filters.items() if value is not None})

    def _pages(self, path: str, params: dict[str, Any]) -> Iterator[Json]:
        while True:
            page = self._json("GET", path, params=params)
            yield from page["items"]
            if page["next_cursor"] is None:
                return
            params["cursor"] = page["next_cursor"]

    def attempts(self, job_id: str) -> list[Json]:
        found: list[Json] = self._json("GET", f"/v1/jobs/{job_id}/attempts")["items"]
        return found

    def cancel(self, job_id: str) -> Json:
        return self._json("POST", f"/v1/jobs/{job_id}/cancel")

    def pause(self, job_id: str) -> Json:
        return self._json("POST", f"/v1/jobs/{job_id}/pause")

    def resume(self, job_id: str) -> Json:
        return self._json("POST", f"/v1/jobs/{job_id}/resume")

    def retry(self, job_id: str) -> Json:
        return self._json("POST", f"/v1/jobs/{job_id}/retry")

    def explain(self, job_id: str) -> Json:
        return self._json("GET", f"/v1/jobs/{job_id}/explain")

    def change(self, job_id: str, *, priority: int | None = None, labels: Mapping[str, str] | None = None) -> Json:
        """Change priority or labels; ProblemError 412 if the job changed at the same moment."""
        version = self.job(job_id)["version"]
        body = {"priority": priority, "labels": None if labels is None else dict(labels)}
        return self._json("PATCH", f"/v1/jobs/{job_id}", json=body, headers={"If-Match": f'"{version}"'})

    def delete(self, job_id: str) -> None:
        self._send("DELETE", f"/v1/jobs/{job_id}")

    def checkpoints(self, job_id: str) -> list[Json]:
        found: list[Json] = self._json("GET", f"/v1/jobs/{job_id}/checkpoints")["items"]
        return found

    def exports(self, job_id: str) -> list[Json]:
        found: list[Json] = self._json("GET", f"/v1/jobs/{job_id}/exports")["items"]
        return found

    def export(
        self,
        job_id: str,
        *,
        formats: list[str] | None = None,
        fold: bool = True,
        register_as: str | None = None,
        key: str | None = None,
    ) -> Json:
        """Have a succeeded job exported once more, once, as `submit` does. formats: pt2, onnx; None: both."""
        body = {"fold": fold, "register_as": register_as} | ({} if formats is None else {"formats": formats})
        return self._once(f"/v1/jobs/{job_id}/exports", body, key)

    def one_export(self, job_id: str, name: str) -> Json:
        return self._json("GET", f"/v1/jobs/{job_id}/exports/{name}")

    def statistics(self, job_id: str) -> list[Json]:
        found: list[Json] = self._json("GET", f"/v1/jobs/{job_id}/statistics")["items"]
        return found

    def study(self, study_id: str) -> Json:
        return self._json("GET", f"/v1/studies/{study_id}")

    def studies(self) -> Iterator[Json]:
        """All studies, newest first, page by page."""
        return self._pages("/v1/studies", {})

    def ask_study(self, study_id: str, verb: str) -> Json:
        """verb: cancel, pause, resume or retry, for all its jobs."""
        return self._json("POST", f"/v1/studies/{study_id}/{verb}")

    def study_report(self, study_id: str, form: str = "html", picture: str = "comparison") -> bytes:
        """form: html, png (of one picture: comparison, curves or heat_map) or json."""
        params = {"format": form, "picture": picture}
        return self._send("GET", f"/v1/studies/{study_id}/report", params=params).content

    def events(self, job_id: str) -> Iterator[Json]:
        """Everything that happened so far, oldest first."""
        return self._pages(f"/v1/jobs/{job_id}/events", {"limit": 1000})

    def norms(self) -> list[Json]:
        found: list[Json] = self._json("GET", "/v1/norms")["items"]
        return found

    def models(self) -> list[Json]:
        found: list[Json] = self._json("GET", "/v1/models")["items"]
        return found

    def datasets(self) -> list[Json]:
        found: list[Json] = self._json("GET", "/v1/datasets")["items"]
        return found

    def cluster(self) -> Json:
        return self._json("GET", "/v1/cluster")

    def create_token(self, owner: str, scopes: list[str], expires_at: str | None = None) -> Json:
        """The answer holds the token itself, which is shown once."""
        return self._json("POST", "/v1/tokens", json={"owner": owner, "scopes": scopes, "expires_at": expires_at})

    def tokens(self) -> list[Json]:
        found: list[Json] = self._json("GET", "/v1/tokens")["items"]
        return found

    def revoke_token(self, token_id: str) -> None:
        self._send("DELETE", f"/v1/tokens/{token_id}")

    def put_package(self, archive: bytes) -> Json:
        """Upload a zip of code; the answer's `package` goes into a spec's `code`."""
        path = f"/v1/packages/{hashlib.sha256(archive).hexdigest()}"
        return self._json("PUT", path, content=archive, headers={"Content-Type": "application/zip"})

    def put_secret(self, name: str, value: str) -> None:
        self._send("PUT", f"/v1/secrets/{name}", json={"value": value})

    def secrets(self) -> list[Json]:
        """Names, never values."""
        found: list[Json] = self._json("GET", "/v1/secrets")["items"]
        return found

    def delete_secret(self, name: str) -> None:
        self._send("DELETE", f"/v1/secrets/{name}")

    def logs(self, job_id: str, **filters: str | int | None) -> Iterator[Json]:
        """The lines so far, oldest first. filters: attempt, rank, q (text they contain), tail (only the last lines)."""
        params = {key: value for key, value in filters.items() if value is not None}
        return self._pages(f"/v1/jobs/{job_id}/logs", {"limit": 1000, **params})

    def follow_logs(self, job_id: str, **filters: str | int | None) -> Iterator[Json]:
        params = {key: value for key, value in filters.items() if value is not None} | {"follow": "true"}
        return (event.data for event in self._follow(f"/v1/jobs/{job_id}/logs", params) if event.event == "line")

    def follow_events(self, job_id: str) -> Iterator[Json]:
        """Every event of the job until it is finished, across lost connections, each once."""
        return (event.data for event in self._follow(f"/v1/jobs/{job_id}/events", {}) if event.event == "event")

    def is_ready(self) -> bool:
        try:
            return self._http.get("/readyz").status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    def _follow(self, path: str, params: Mapping[str, Any]) -> Iterator[StreamEvent]:
        last, failures = "", 0
        while failures < 10:
            headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last} if last else {})
            try:
                with self._http.stream("GET", path, params=params, headers=headers) as answer:
                    if answer.is_error:
                        answer.read()
                        raise _problem(answer)
                    for event in _events(answer.iter_lines()):
                        last, failures = event.id or last, 0
                        yield event
                        if event.event == "end":
                            return
            except httpx.TransportError:
                failures += 1
                time.sleep(min(self.pause_s * 2 ** (failures - 1), 5.0))
        raise ServiceUnreachableError(f"The stream of {self.url}{path} was lost.")

    def _json(self, method: str, path: str, **options: Any) -> Json:
        content: Json = self._send(method, path, **options).json()
        return content

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            answer = self._http.request(method, path, **options)
        except httpx.TransportError as error:
            raise ServiceUnreachableError(
                f"No service answers at {self.url}. Start one with `syncnorm serve`, or set SYNCNORM_URL."
            ) from error
        if answer.is_error:
            raise _problem(answer)
        return answer


def _problem(answer: httpx.Response) -> ProblemError:
    try:
        return ProblemError(answer.json())
    except ValueError:
        return ProblemError({"status": answer.status_code, "detail": f"{answer.status_code} {answer.text[:200]}"})


def _events(lines: Iterator[str]) -> Iterator[StreamEvent]:
    fields: dict[str, list[str]] = {}
    for line in lines:
        if line.startswith(":"):
            continue
        if line:
            name, _, value = line.partition(":")
            fields.setdefault(name, []).append(value.removeprefix(" "))
        elif fields:
            data = "\n".join(fields.get("data", ["null"]))
            yield StreamEvent(fields.get("id", [""])[-1], fields.get("event", ["message"])[-1], json.loads(data))
            fields = {}


def _find_service() -> str:
    if url := os.environ.get("SYNCNORM_URL"):
        return url
    try:
        found = json.loads((Path(os.environ.get("SYNCNORM_HOME") or ".syncnorm") / "service.json").read_text())
        return str(found["url"])
    except (OSError, ValueError, KeyError):
        return "http://127.0.0.1:8000"
