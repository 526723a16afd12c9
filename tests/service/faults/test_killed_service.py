"""kill -9 of the service under load: every promise it gave is kept, as its clients' own record of it shows.

Real processes, real sockets, SQLite with synchronous=FULL; Ray and MLflow are stand-ins that live on. The record of
all requests and answers is then checked: nothing acknowledged is lost, no key makes two jobs, versions never go back,
what is finished stays so, no attempt is started twice (Jepsen's way, on one register a job).
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import psutil
import pytest

from syncnorm.service.local.free_ports import free_port
from tests.helpers.amounts import amount
from tests.helpers.service.api import SPEC
from tests.helpers.service.fake_cluster import FakeServers, fake_servers
from tests.service.conftest import ROOT

TERMINAL = ("succeeded", "failed", "cancelled")
SMALL = SPEC | {"resources": {"workers": 1}}


class Killable:
    """The service on one port, forked anew after each death."""

    def __init__(self, home: Path, url: str, bug: str = "", death_chance: float = 0.02) -> None:
        """death_chance: of dying right after an effect of the reconciler, where kills from outside would seldom hit."""
        self.death_chance = death_chance
        self.port = free_port()
        self.pid = 0
        self.deaths = 0
        self._bug = bug
        self._lock = threading.Lock()
        command = [sys.executable, "-m", "tests.helpers.service.killable", str(home), url, str(self.port)]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("SYNCNORM_")}
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._mother = subprocess.Popen(command, env=environment | {"PYTHONPATH": str(ROOT)}, **pipes)

    def keep_alive(self) -> None:
        """Start one if none lives (it may have died of itself)."""
        with self._lock:
            if self.pid == 0 or not psutil.pid_exists(self.pid):
                self.deaths += self.pid != 0
                assert self._mother.stdin is not None
                assert self._mother.stdout is not None
                self._mother.stdin.write(json.dumps([self.death_chance, self._bug]) + "\n")
                self._mother.stdin.flush()
                self.pid = int(self._mother.stdout.readline())

    def kill(self) -> None:
        if psutil.pid_exists(self.pid):
            os.kill(self.pid, signal.SIGKILL)
        while psutil.pid_exists(self.pid):
            time.sleep(0.002)

    def close(self) -> None:
        self.kill()
        self._mother.communicate()


@dataclass(frozen=True)
class Saw:
    """A client read a job: between these moments it was at this version, in this state."""

    job_id: str
    began: float
    ended: float
    version: int
    state: str


@dataclass
class Record:
    keys: dict[str, set[str]] = field(default_factory=dict)
    """Job ids that were acknowledged under each key."""
    saw: list[Saw] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    """Acknowledged jobs that were not found later."""
    odd: list[tuple[int, str]] = field(default_factory=list)
    operations: int = 0


class User(threading.Thread):
    """One client: submits, reads, cancels, lists; asks again until it is answered."""

    def __init__(self, service: Killable, record: Record, seed: int, stop: threading.Event) -> None:
        super().__init__()
        self._service, self._record, self._stop_event = service, record, stop
        self._chance = random.Random(seed)
        self._connection: HTTPConnection | None = None
        self._mine: list[str] = []

    def run(self) -> None:
        while not self._stop_event.is_set():
            act = self._chance.choices([self._submit, self._read, self._cancel, self._list], [2, 6, 1, 1])[0]
            act()
            self._record.operations += 1
        self.close()

    def close(self) -> None:
        if self._connection:
            self._connection.close()

    def _submit(self) -> None:
        key = uuid.uuid4().hex
        repeats = self._chance.choice([1, 1, 1, 2])
        for _ in range(repeats):
            code, job = self.ask("POST", "/v1/jobs", SMALL, {"Idempotency-Key": key})
            if code == 201:
                self._record.keys.setdefault(key, set()).add(job["id"])
                self._mine.append(job["id"])

    def _read(self) -> None:
        if self._mine:
            job_id = self._chance.choice(self._mine)
            began = time.monotonic()
            code, job = self.ask("GET", f"/v1/jobs/{job_id}")
            if code == 404:
                self._record.missing.append(job_id)
            else:
                self._record.saw.append(Saw(job_id, began, time.monotonic(), job["version"], job["state"]))

    def _cancel(self) -> None:
        if self._mine:
            self.ask("POST", f"/v1/jobs/{self._chance.choice(self._mine[-3:])}/cancel", expected=(200, 202, 409))

    def _list(self) -> None:
        self.ask("GET", "/v1/jobs?limit=20")

    def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        headers: dict[str, str] | None = None,
        expected: tuple[int, ...] = (200, 201, 404),
    ) -> tuple[int, Any]:
        while True:
            try:
                if self._connection is None:
                    self._connection = HTTPConnection("127.0.0.1", self._service.port, timeout=30)
                sent = {"Content-Type": "application/json", **(headers or {})}
                self._connection.request(method, path, json.dumps(body) if body else None, sent)
                answer = self._connection.getresponse()
                value = json.loads(answer.read())
            except (OSError, HTTPException):
                if self._connection is not None:
                    self._connection.close()
                self._connection = None
                self._service.keep_alive()
                time.sleep(0.01)  # it is coming up
                continue
            if answer.status not in expected:
                self._record.odd.append((answer.status, str(value)[:300]))
            return answer.status, value


@contextmanager
def load(service: Killable, clients: int, seed: int, record: Record | None = None) -> Iterator[Record]:
    """record: one to go on with."""
    record, stop = record or Record(), threading.Event()
    users = [User(service, record, seed + number, stop) for number in range(clients)]
    service.keep_alive()
    for user in users:
        user.start()
    try:
        yield record
    finally:
        stop.set()
        for user in users:
            user.join()


def storm(home: Path, *, kills: int, clients: int, seed: int = 1) -> tuple[Record, Killable]:
    """Kill the service again and again under load, let everything end, and check."""
    with fake_servers() as (servers, url), closing(Killable(home, url)) as service:
        with load(service, clients, seed) as record:
            _kill(service, record, kills, seed)
        service.death_chance = 0.0
        service.kill()
        check(record, settle(service, record), servers)
        return record, service


def _kill(service: Killable, record: Record, kills: int, seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(kills):
        _wait_for(record, record.operations + chance.randint(5, 60))
        service.kill()


def _wait_for(record: Record, operations: int) -> None:
    while record.operations < operations:
        time.sleep(0.002)


def settle(service: Killable, record: Record, within_s: float = 60) -> dict[str, dict[str, Any]]:
    """All jobs, once they are finished. within_s: the longest without any of them getting there."""
    reader = User(service, record, 0, threading.Event())
    deadline, fewest = 0.0, 10**9
    while True:
        jobs: dict[str, dict[str, Any]] = {}
        path = "/v1/jobs?limit=200"
        cursor = ""
        while True:
            _, page = reader.ask("GET", path + cursor)
            jobs |= {job["id"]: job for job in page["items"]}
            if page["next_cursor"] is None:
                break
            cursor = f"&cursor={page['next_cursor']}"
        if all(job["state"] in TERMINAL for job in jobs.values()):
            reader.close()
            return jobs
        left = [(job["id"], job["state"]) for job in jobs.values() if job["state"] not in TERMINAL]
        if len(left) < fewest:
            deadline, fewest = time.monotonic() + within_s, len(left)
        assert time.monotonic() < deadline, (len(left), left[-5:])
        time.sleep(0.05)


def check(record: Record, jobs: dict[str, dict[str, Any]], servers: FakeServers) -> None:
    """Every promise, from what the clients wrote down and what is there in the end."""
    acknowledged = {job_id for ids in record.keys.values() for job_id in ids}
    assert record.odd == []
    assert record.missing == []
    assert all(len(ids) == 1 for ids in record.keys.values())
    assert acknowledged <= set(jobs)
    # Every client asked until it was answered, but for the last one of each at the end.
    assert len(set(jobs) - acknowledged) <= 0
    assert {job["state"] for job in jobs.values()} <= {"succeeded", "cancelled"}
    _check_versions(record.saw)
    for job in jobs.values():
        if job["mlflow"]["run_id"]:
            wanted = {"succeeded": "FINISHED", "cancelled": "KILLED"}[job["state"]]
            assert servers.runs[job["mlflow"]["run_id"]] == wanted


def _check_versions(saw: list[Saw]) -> None:
    """A read that began after another one had ended sees the same version or a later one; a finished job stays so."""
    newest: dict[str, list[Saw]] = {}
    for one in sorted(saw, key=lambda one: one.began):
        for earlier in newest.setdefault(one.job_id, []):
            if earlier.ended < one.began:
                assert earlier.version <= one.version, (earlier, one)
                assert earlier.state not in TERMINAL or earlier.state == one.state, (earlier, one)
        newest[one.job_id].append(one)


def doubled(home: Path) -> int:
    """Attempts whose driver was started more than once."""
    folders = (home / "storage" / "jobs").glob("*/attempts/*/starts")
    return sum(len(folder.read_text().split()) > 1 for folder in folders)


def test_killed_service_keeps_every_promise(tmp_path: Path) -> None:
    record, service = storm(tmp_path, kills=8, clients=3)

    assert doubled(tmp_path) == 0
    assert service.deaths >= 8
    assert len(record.keys) > 30


@pytest.mark.chaos
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("seed", range(2, 10))
def test_service_killed_two_hundred_and_fifty_times_keeps_every_promise(seed: int, tmp_path: Path) -> None:
    """Two thousand times with all the seeds."""
    kills = amount(250)
    record, service = storm(tmp_path, kills=kills, clients=8, seed=seed)
    print(f"{service.deaths} deaths, {record.operations} operations, {len(record.keys)} jobs")

    assert doubled(tmp_path) == 0
    assert service.deaths >= kills
    assert record.operations > 20 * kills


def test_service_that_makes_up_ids_at_the_start_would_be_noticed(tmp_path: Path) -> None:
    with fake_servers(work_s=(600, 600)) as (_, url):
        bug = Killable(tmp_path, url, "new id each time", death_chance=0.5)
        with closing(bug), load(bug, 2, seed=3) as record:
            _kill(bug, record, 8, seed=3)

    assert doubled(tmp_path) > 0


def _files(process: psutil.Process) -> int:
    """Open files and sockets, but for those of the database, whose pool keeps up to 20 connections once it had them."""
    return process.num_fds() - sum("service.db" in file.path for file in process.open_files())


_AT_ONCE = 250


def _soak(home: Path, jobs: int) -> None:
    """Ray and MLflow come and go under load; nothing is lost, and the process holds no more than before.

    Jobs come in parts, each once the last has ended: a tick holds all that wait, some 3 KiB each.
    """
    with fake_servers() as (servers, url), closing(Killable(home, url, death_chance=0.0)) as service:
        record = Record()
        with load(service, 3, 18, record):
            _wait_for(record, 150)
            process = psutil.Process(service.pid)
            before = (_files(process), process.num_threads(), process.memory_info().rss)
        for whole in range(_AT_ONCE, jobs + _AT_ONCE, _AT_ONCE):
            with load(service, 3, 18 + whole, record):
                while len(record.keys) < min(whole, jobs):
                    servers.is_away = not servers.is_away
                    _wait_for(record, record.operations + 50)
                servers.is_away = False
            settled = settle(service, record)
        check(record, settled, servers)
        most = before[0] + 10
        stop = time.monotonic() + 30  # connections that nobody uses are closed after some seconds
        while _files(process) > most and time.monotonic() < stop:
            time.sleep(0.5)
        after = (_files(process), process.num_threads(), process.memory_info().rss)
        assert service.deaths == 0
    assert doubled(home) == 0
    assert after[0] <= most  # connections of clients come and go
    assert after[1] <= before[1] + 10  # so do threads that serve requests
    assert after[2] <= before[2] + 60 * 2**20
    names = {path.name for path in home.iterdir()}
    assert names == {"service.db", "service.db-wal", "service.db-shm", "storage", "secrets.key"}


def test_soaked_service_holds_no_more_than_before(tmp_path: Path) -> None:
    _soak(tmp_path, jobs=50)


@pytest.mark.chaos
@pytest.mark.timeout(3000)
def test_long_soaked_service_holds_no_more_than_before(tmp_path: Path) -> None:
    _soak(tmp_path, jobs=amount(10_000))
