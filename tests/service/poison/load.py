"""Followers and people at work on a service, and what it costs them and the host: for the soak."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil

_STREAMS = (
    ("/logs?follow=true", "text/event-stream"),
    ("/logs?follow=true", "application/x-ndjson"),
    ("/events", "text/event-stream"),
)


@contextlib.contextmanager
def followers(url: str, job_id: str, count: int) -> Iterator[list[int]]:
    """Half of them read, half never do. Bytes read by each of the first half."""
    stop, read = threading.Event(), [0] * (count // 2)
    sockets = [_ask(url, job_id, number) for number in range(count)]
    threads = [
        threading.Thread(target=_read, args=(one, read, index, stop)) for index, one in enumerate(sockets[: count // 2])
    ]
    for thread in threads:
        thread.start()
    try:
        yield read
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        for one in sockets:
            one.close()


def _ask(url: str, job_id: str, number: int) -> socket.socket:
    place = urlsplit(url)
    path, accept = _STREAMS[number % len(_STREAMS)]
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    one.settimeout(0.5)
    one.connect((str(place.hostname), int(place.port or 80)))
    one.sendall(f"GET /v1/jobs/{job_id}{path} HTTP/1.1\r\nHost: {place.netloc}\r\nAccept: {accept}\r\n\r\n".encode())
    return one


def _read(one: socket.socket, read: list[int], index: int, stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            if not (got := one.recv(65536)):
                return
        except TimeoutError:
            continue
        except OSError:
            return
        read[index] += len(got)


@dataclass
class Watch:
    """Samples of a service process: seconds of requests, its memory, its database."""

    home: Path
    pid: int
    submits_s: list[float] = field(default_factory=list)
    cancels_s: list[float] = field(default_factory=list)
    sizes: list[tuple[float, float, float]] = field(default_factory=list)
    """(seconds, MB of memory, MB of database)."""

    def work(self, url: str, spec: dict[str, Any], seconds: float) -> None:
        """Submit a job and cancel it, again and again."""
        began = time.monotonic()
        with httpx.Client(base_url=url, timeout=60, trust_env=False) as http:
            while (now_s := time.monotonic() - began) < seconds:
                self.sizes.append((now_s, self._memory_mb(), self._database_mb()))
                job_id = self._timed(http, "/v1/jobs", self.submits_s, json=spec).json()["id"]
                self._timed(http, f"/v1/jobs/{job_id}/cancel", self.cancels_s)
                time.sleep(0.1)
        self.sizes.append((time.monotonic() - began, self._memory_mb(), self._database_mb()))

    def _timed(self, http: httpx.Client, path: str, into: list[float], **options: Any) -> httpx.Response:
        began = time.monotonic()
        answer = http.post(path, **options).raise_for_status()
        into.append(time.monotonic() - began)
        return answer

    def _memory_mb(self) -> float:
        return float(psutil.Process(self.pid).memory_info().rss) / 1e6

    def _database_mb(self) -> float:
        return sum(path.stat().st_size for path in self.home.glob("service.db*")) / 1e6

    def growth(self, column: int) -> tuple[float, float]:
        """MB in the first and in the second half of the time."""
        first, middle, last = (self.sizes[index][column] for index in (0, len(self.sizes) // 2, -1))
        return middle - first, last - middle


def p95(values: list[float]) -> float:
    return quantiles(values, n=20)[-1] if len(values) > 1 else values[0]


def table(rows: list[tuple[str, Watch]]) -> str:
    """The figures of the soak, one line for each phase."""
    lines = ["phase     submits  p50 s  p95 s  max s  cancel p95 s  memory MB (halves)   database MB (halves)"]
    for name, watch in rows:
        memory, database = watch.growth(1), watch.growth(2)
        s = sorted(watch.submits_s)
        lines.append(
            f"{name:<10}{len(s):>7}{s[len(s) // 2]:>7.2f}{p95(s):>7.2f}{s[-1]:>7.2f}{p95(watch.cancels_s):>14.2f}"
            f"{watch.sizes[-1][1]:>11.0f} ({memory[0]:+.0f}, {memory[1]:+.0f})"
            f"{watch.sizes[-1][2]:>11.1f} ({database[0]:+.1f}, {database[1]:+.1f})"
        )
    return "\n".join(lines)


def lines_kept(url: str, job_id: str) -> int:
    """How many lines of a job can be read now, as far as their numbers tell."""
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as http:
        items = http.get(f"/v1/jobs/{job_id}/logs?tail=1").json()["items"]
    return int(json.loads(json.dumps(items[-1]["id"]))) if items else 0
