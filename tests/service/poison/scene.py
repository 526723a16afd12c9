"""One service with everything around it in hand, what is asked of it, and every fault it showed."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import httpx
import sqlalchemy as sa
from fastapi.testclient import TestClient

from syncnorm.service.api.components import Components
from syncnorm.service.backend_errors import BackendError
from syncnorm.service.integrations import ray_sweep as cluster_sweep
from syncnorm.service.integrations.http_client import HttpClient
from syncnorm.service.integrations.mlflow_describer import RunDescriber
from syncnorm.service.integrations.mlflow_runs import MlflowTracker
from syncnorm.service.integrations.ray_jobs import RayDispatcher
from syncnorm.service.integrations.ray_sweep import ClusterSweep
from syncnorm.service.integrations.webhooks import Webhooks
from syncnorm.service.jobs.job import Job
from syncnorm.service.reconciler.backends import attempt_token
from syncnorm.service.store import Store, schema
from syncnorm.service.store.database import Database
from syncnorm.service.studies.runs import MlflowStudyRuns
from syncnorm.trainer.contract.protocol import CheckpointFact
from tests.helpers.service.api import api_of
from tests.helpers.service.world import World
from tests.service.poison.outside import Outside, served

TERMINAL = ("succeeded", "failed", "cancelled")
PROBLEM = "application/problem+json"
VICTIM: dict[str, Any] = {
    "name": "victim",
    "model": {"name": "resnet"},
    "data": {"name": "digits", "batch_size": 32},
    "resources": {"workers": 1},
    "labels": {"phases": "training-finalizing"},
}
"""An innocent job: it trains, exports and succeeds by itself within three ticks of its start."""
TICKS = 8
"""In so many ticks a victim has started and succeeded, and whatever was cancelled has ended."""
LONGEST_TICK_S = 10.0
"""Ten times what a tick takes that waits for nobody; a host that is busy with other things gets longer."""
_BESIDE_S = 1.0
"""So long a step waits for the loops that work beside the reconciler."""
PAGES = ("", "/explain", "/attempts", "/events", "/logs", "/checkpoints", "/files", "/statistics", "/exports")
_PAGE = {"Accept": "text/html;q=0.5, application/problem+json"}
"""For the pages in a browser, with problems as JSON."""
RECEIVERS = ("good",)
"""Of webhooks."""
EVERYBODYS = ("/v1/jobs?limit=200", "/v1/studies", "/v1/cluster", "/v1/tokens", "/v1/secrets", "/metrics")


def longest_tick_s() -> float:
    return LONGEST_TICK_S * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


class Recorder(logging.Handler):
    """Errors that the service logs."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else getattr(record, "error", "")
        self.records.append(f"{record.getMessage()} {type(error).__name__ if record.exc_info else ''} {error}".strip())


@dataclass
class Scene:
    """faults: what must never be, in words."""

    client: TestClient
    world: World
    outside: Outside
    owners: dict[str, dict[str, str]] = field(default_factory=dict)
    """Headers by owner."""
    faults: list[str] = field(default_factory=list)
    log: Recorder = field(default_factory=Recorder)
    loops: dict[str, Callable[[], None]] = field(default_factory=dict)
    """What ticks beside the reconciler, each on a thread of its own."""
    _beside: dict[str, threading.Thread] = field(default_factory=dict)
    """What the loops beside the reconciler are at."""

    @property
    def context(self) -> Components:
        context: Components = self.client.app.state.context  # type: ignore[attr-defined]
        return context

    # What users do

    def call(self, method: str, path: str, owner: str | None = None, **options: Any) -> httpx.Response:
        """owner: None: an admin. An answer that must never be is a fault."""
        headers = {**(self.owners[owner] if owner else {}), **options.pop("headers", {})}
        answer: httpx.Response = self.client.request(method, path, headers=headers, **options)
        if answer.is_error and (answer.status_code >= 500 or PROBLEM not in answer.headers.get("content-type", "")):
            if not _is_honest(answer, path):
                self.faults.append(f"{method} {_kind(path)} answered {answer.status_code}: {self._why(answer)}")
        elif answer.content and "json" in answer.headers.get("content-type", ""):
            self._must_be_json(path, answer.content)
        return answer

    def _why(self, answer: httpx.Response) -> str:
        """The last error of the log says more than the answer does."""
        said = self.log.records[-1] if self.log.records else answer.text
        return f"{said[:200]}"

    def _must_be_json(self, path: str, content: bytes) -> None:
        try:
            json.loads(content, parse_constant=_refuse)
        except ValueError as error:
            self.faults.append(f"GET {_kind(path)} is no JSON: {error}")

    def post(self, path: str, content: bytes, owner: str | None = None) -> httpx.Response:
        return self.call("POST", path, owner, content=content, headers={"Content-Type": "application/json"})

    def submit(self, content: bytes, owner: str = "ann", to: str = "/v1/jobs") -> str | None:
        """The id of what was taken; None: it was refused."""
        answer = self.post(to, content, owner)
        return answer.json()["id"] if answer.status_code == 201 else None

    def tell(self, attempt_id: str, fence: str, kind: str, content: bytes) -> httpx.Response:
        """A message of a worker."""
        headers = {"Authorization": f"Bearer {attempt_token(fence)}", "Content-Type": "application/json"}
        path = f"/internal/v1/attempts/{attempt_id}/{kind}"
        return self.call("POST", path, content=content, headers=headers)

    def state(self, job_id: str) -> str:
        """As the API has it."""
        answer = self.call("GET", f"/v1/jobs/{job_id}")
        return str(answer.json()["state"]) if answer.is_success else str(answer.status_code)

    # What time does

    def step(self, count: int = 1) -> None:
        """Every loop of the service ticks, every driver does its next bit, five seconds pass."""
        for _ in range(count):
            began = time.monotonic()
            self._tick("reconciler", self.context.reconciler.tick)
            if (took_s := time.monotonic() - began) > longest_tick_s():
                self.faults.append(f"a tick took {took_s:.0f} s")
            for name, tick in self.loops.items():
                self._tick_beside(name, tick)
            self._wait_beside(_BESIDE_S)
            with self.outside.lock:
                self.world.cluster.work()
            self.world.clock.advance(5.0)

    def _tick_beside(self, name: str, tick: Callable[[], None]) -> None:
        """Unless the loop is still at its last tick."""
        if name not in self._beside:
            self._beside[name] = threading.Thread(target=self._tick, args=(name, tick), daemon=True)
            self._beside[name].start()

    def _wait_beside(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        for name, thread in list(self._beside.items()):
            thread.join(max(0.0, until - time.monotonic()))
            if not thread.is_alive():
                del self._beside[name]

    def close(self) -> None:
        """Nothing works on after this."""
        self.outside.closing.set()
        self._wait_beside(60.0)
        assert not self._beside, f"still at work: {', '.join(self._beside)}"

    def _tick(self, name: str, tick: Callable[[], None]) -> None:
        try:
            tick()
        except BackendError:  # what is away is told of and asked again
            if name == "reconciler":
                raise
        except Exception as error:  # whatever it is, it ended the tick for everybody
            said = str(error).replace("\n", " ")[:160]
            self.faults.append(f"tick of {name} failed: {type(error).__name__}: {said}")

    def step_until(self, done: Callable[[], bool], ticks: int = TICKS) -> bool:
        for _ in range(ticks):
            if done():
                return True
            self.step()
        return done()

    # What is demanded

    def look_everywhere(self, job_ids: Sequence[str], study_ids: Sequence[str] = ()) -> None:
        """Every page there is of these jobs and of the service."""
        for job_id in job_ids:
            for page in PAGES:
                self.call("GET", f"/v1/jobs/{job_id}{page}")
            self.call("GET", f"/jobs/{job_id}", headers=_PAGE)
        for study_id in study_ids:
            self.call("GET", f"/v1/studies/{study_id}")
            self.call("GET", f"/v1/studies/{study_id}/report?format=json")
        for path in EVERYBODYS:
            self.call("GET", path)
        self.call("GET", "/", headers=_PAGE)

    def is_ready(self) -> bool:
        return self.call("GET", "/readyz").status_code == 200

    def check_victim(self) -> None:
        """An innocent job of somebody else, submitted now, starts and succeeds."""
        answer = self.post("/v1/jobs", json.dumps(VICTIM).encode(), "bob")
        if answer.status_code != 201:
            self.faults.append(f"the victim was refused: {answer.text[:200]}")
            return
        job_id = answer.json()["id"]
        if not self.step_until(lambda: self.state(job_id) == "succeeded"):
            told = self.call("GET", f"/v1/jobs/{job_id}/explain").json()
            self.faults.append(f"the victim is {self.state(job_id)} after {TICKS} ticks; explain: {told.get('code')}")

    def check_ends(self, job_ids: Sequence[str], who: str = "the poison") -> None:
        """What has not ended by itself can be cancelled; whatever failed says why."""
        for job_id in job_ids:
            if self.state(job_id) not in TERMINAL:
                self.call("POST", f"/v1/jobs/{job_id}/cancel")
        self.step_until(lambda: all(self.state(job_id) in TERMINAL for job_id in job_ids))
        for job_id in job_ids:
            job = self.call("GET", f"/v1/jobs/{job_id}").json()
            if job.get("state") not in TERMINAL:
                self.faults.append(f"{who} is {job.get('state')} after a cancel and {TICKS} ticks")
            elif job["state"] == "failed" and not (job["reason"] and job["message"]):
                self.faults.append(f"{who} failed without a reason")

    def check_quiet(self) -> None:
        """Nothing was logged as an error."""
        self.faults += [f"logged: {line[:200]}" for line in dict.fromkeys(self.log.records)]

    def check_ready(self) -> None:
        if not self.is_ready():
            self.faults.append(f"/readyz is false: {self.call('GET', '/readyz').text}")


@dataclass(frozen=True)
class Unheard:
    """What a worker makes of an error of the service: nothing, it goes on."""

    stop: None = None


class Patient:
    """The store as workers meet it, who outlive errors of the service."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.reports = self

    def heartbeat(self, *report: Any) -> Job | Unheard | None:
        try:
            return self._store.reports.heartbeat(*report)
        except Exception:
            return Unheard()

    def add_checkpoint(self, attempt_id: str, fact: CheckpointFact) -> None:
        with suppress(Exception):
            self._store.reports.add_checkpoint(attempt_id, fact)


class Joint:
    """Puts the real ports between the service and the fakes, which stand behind HTTP."""

    outside: Outside
    store: Store
    dispatcher: RayDispatcher
    tracker: MlflowTracker

    def __init__(self, stack: ExitStack, timeout_s: float) -> None:
        self._stack = stack
        self._timeout_s = timeout_s

    def wrap(self, port: Any, name: str) -> Any:
        if name == "store":
            self.store = port
        elif name == "cluster":
            self.outside = self._stack.enter_context(served(port))
            known = self.store.unreleased_submissions
            self.dispatcher = RayDispatcher(self.outside.url, timeout_s=self._timeout_s, known=known)
            return self._stack.enter_context(closing(self.dispatcher))
        elif name == "tracker":
            self.tracker = MlflowTracker(self.outside.url, timeout_s=self._timeout_s)
            return self._stack.enter_context(closing(self.tracker))
        return port


@contextmanager
def scene(
    folder: Path, database: Database, *, timeout_s: float = 5.0, receivers: Sequence[str] = RECEIVERS, **settings: Any
) -> Iterator[Scene]:
    """A service on an empty database, over the real ports; ann's jobs are poison, bob's are victims."""
    with ExitStack() as stack:
        empty(database)
        joint = Joint(stack, timeout_s)
        world = World(folder, database, wrap=joint.wrap)
        world.tracker, world.study_runs = joint.tracker, MlflowStudyRuns(joint.tracker)
        world.cluster.store = Patient(world.store)  # type: ignore[assignment]
        world.cluster.nodes = (("node-1", 1e6, 1e4), ("node-2", 1e6, 1e4))
        world.clock.now = datetime.now(UTC) - timedelta(days=1)
        log = stack.enter_context(_recorded())
        client, _ = stack.enter_context(api_of(world, auth=True, allow_code=True, **settings))
        made = Scene(client, world, joint.outside, log=log)
        made.loops = _loops(made, joint, receivers, stack)
        stack.callback(made.close)
        for owner in ("ann", "bob"):
            token = client.post("/v1/tokens", json={"owner": owner}).json()["token"]
            made.owners[owner] = {"Authorization": f"Bearer {token}"}
        yield made


def empty(database: Database) -> None:
    with database.write() as connection:
        for table in reversed(schema.metadata.sorted_tables):
            connection.execute(sa.delete(table))


@contextmanager
def _recorded() -> Iterator[Recorder]:
    """Of these errors nothing but words is kept: a traceback would keep alive what failed, e.g. a cursor."""
    log = Recorder()
    loggers = [logging.getLogger(name) for name in ("syncnorm.service", "syncnorm.trainer")]
    for logger in loggers:
        logger.addHandler(log)
        logger.propagate = False
    try:
        yield log
    finally:
        for logger in loggers:
            logger.removeHandler(log)
            logger.propagate = True


def _loops(scene: Scene, joint: Joint, receivers: Sequence[str], stack: ExitStack) -> dict[str, Callable[[], None]]:
    """Those of `syncnorm.service.server`, by the clock of the scene."""

    def seconds() -> float:
        return scene.world.clock().timestamp()

    stack.enter_context(mock.patch.object(cluster_sweep, "time", SimpleNamespace(monotonic=seconds)))
    http = stack.enter_context(closing(HttpClient("A webhook receiver")))
    store = scene.world.store
    told = {
        f"webhooks to {name}": Webhooks(store, [f"{joint.outside.url}/hook/{name}"], b"0" * 32, http, "tests").tick
        for name in receivers
    }
    return told | {
        "studies": scene.context.studies.tick,
        "sweep": ClusterSweep(joint.dispatcher, store.unreleased_submissions).tick,
        "describer": RunDescriber(store, joint.tracker, clock=seconds).tick,
    }


def _is_honest(answer: httpx.Response, path: str) -> bool:
    """Something else is away, and the answer says so."""
    said = path == "/readyz" or (PROBLEM in answer.headers.get("content-type", "") and "retry-after" in answer.headers)
    return answer.status_code == 503 and said


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} in JSON")


def _kind(path: str) -> str:
    """A path without what changes from case to case."""
    parts = path.partition("?")[0].split("/")
    return "/".join("{id}" if part.startswith(("job_", "study_")) else part for part in parts)
