"""Requests and streams of the client: time limits, retries, and one error for each way to fail."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx

from syncnorm.service.client.addresses import Address, running_here
from syncnorm.service.client.answers import CONNECT_S, GATEWAY, SAFE, not_syncnorm, refused, translated
from syncnorm.service.client.client_errors import (
    ClientError,
    Json,
    NobodyAnswersError,
    NotSyncnormError,
    ProblemError,
    ServiceTimeoutError,
    ServiceUnreachableError,
    UsageError,
)

T = TypeVar("T")
_STREAM_S = 60.0
"""The service sends something at least every 15 s."""
_WAITS_S = (0.2, 1.0)
_LONGEST_RETRY_AFTER_S = 5.0


@dataclass(frozen=True)
class StreamEvent:
    id: str
    event: str
    data: Any


class Connection:
    """Requests to one service. url: without a slash at the end."""

    def __init__(self, address: Address, token: str | None, timeout_s: float) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.timeout_s = timeout_s
        self.patience_s = 300.0
        """How long a lost stream, or a read that waits for a job, is retried."""
        self.pause_s = 0.2
        """Pause before the first retry; doubles up to 5 s."""
        self.on_lost: Callable[[str], None] = lambda _message: None
        """Called once when a stream is lost, with the reason."""
        self._address = address
        self.http = httpx.Client(base_url=address.url, headers=headers, trust_env=False)

    @property
    def url(self) -> str:
        return self._address.url

    def json(self, method: str, path: str, *, needs: tuple[str, ...] = (), **options: Any) -> Json:
        """The JSON object of the answer. needs: members without which the server isn't syncnorm."""
        answer = self.send(method, path, **options)
        try:
            content = answer.json()
        except (ValueError, RecursionError) as error:
            raise not_syncnorm(self._address, answer) from error
        if not isinstance(content, dict) or any(name not in content for name in needs):
            raise not_syncnorm(self._address, answer)
        return content

    def empty(self, method: str, path: str, **options: Any) -> None:
        """Send a request that is answered by 204 and no body."""
        answer = self.send(method, path, **options)
        if answer.status_code != httpx.codes.NO_CONTENT:
            raise not_syncnorm(self._address, answer)

    def file(self, path: str, media_type: str, **options: Any) -> bytes:
        """The body of an answer of that type."""
        answer = self.send("GET", path, **options)
        if not answer.headers.get("content-type", "").startswith(media_type):
            raise not_syncnorm(self._address, answer)
        return answer.content

    def send(
        self, method: str, path: str, *, timeout_s: float | None = None, repeatable: bool = False, **options: Any
    ) -> httpx.Response:
        """The answer, if it is 2xx. repeatable: sending it twice has the effect of once, as under an idempotency key.
        Raises: ClientError."""
        limit_s = timeout_s or self.timeout_s
        timeout = httpx.Timeout(limit_s, connect=min(CONNECT_S, limit_s))
        try:
            request = self.http.build_request(method, path, timeout=timeout, **options)
        except (TypeError, ValueError, RecursionError) as error:
            raise UsageError(f"The body of a request must be plain JSON values: {error}.") from error
        waits = iter(_WAITS_S)
        while True:
            try:
                with translated(self._address, method, limit_s):
                    answer = self.http.send(request)
                if answer.is_success:
                    return answer
                raise refused(self._address, answer)
            except ClientError as error:
                wait_s = _wait_s(error, method in SAFE, repeatable, next(waits, None))
                if wait_s is None:
                    raise
                time.sleep(wait_s)

    def follow(self, path: str, params: Mapping[str, Any]) -> Iterator[StreamEvent]:
        """Every event of a stream up to its `end`, each once, across lost connections and restarts of the service."""
        last, patience = "", RetryPeriod(self)
        while True:
            try:
                for event in self._stream(path, params, last, patience.renew):
                    last = event.id or last
                    yield event
                    if event.event == "end":
                        return
                raise ServiceUnreachableError(f"The stream of {self.url}{path} ended early.")
            except ClientError as error:
                patience.wait(error)

    @contextmanager
    def streamed(self, path: str, headers: Mapping[str, str]) -> Iterator[httpx.Response]:
        """The answer to a GET, if it is 2xx, whose body is read within the block. Raises: ClientError."""
        timeout = httpx.Timeout(_STREAM_S, connect=CONNECT_S)
        request = self.http.build_request("GET", path, headers=dict(headers), timeout=timeout)
        silent = f"The download from {self.url} was silent for {_STREAM_S:g} s."
        with translated(self._address, "GET", _STREAM_S, silent=silent):
            answer = self.http.send(request, stream=True)
            try:
                if not answer.is_success:
                    answer.read()
                    raise refused(self._address, answer)
                yield answer
            finally:
                answer.close()

    def persist(self, poll: Callable[[], T]) -> T:
        """What `poll` returns, asked for again while the service is away."""
        patience = RetryPeriod(self)
        patience.renew()
        while True:
            try:
                return poll()
            except ClientError as error:
                patience.wait(error)

    def relocate(self) -> None:
        """Reads the address file of this host's service again: it may have restarted on another port."""
        if self._address.found and (address := running_here()) is not None:
            self._address = address
            self.http.base_url = address.url

    def _stream(
        self, path: str, params: Mapping[str, Any], last: str, on_line: Callable[[], None]
    ) -> Iterator[StreamEvent]:
        """on_line: called for every line, also for the comments that keep a quiet stream open."""
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last} if last else {})
        timeout = httpx.Timeout(_STREAM_S, connect=CONNECT_S)
        request = self.http.build_request("GET", path, params=dict(params), headers=headers, timeout=timeout)
        with translated(
            self._address, "GET", _STREAM_S, silent=f"The stream of {self.url} was silent for {_STREAM_S:g} s."
        ):
            answer = self.http.send(request, stream=True)
            try:
                if not answer.is_success:
                    answer.read()
                    raise refused(self._address, answer)
                if not answer.headers.get("content-type", "").startswith("text/event-stream"):
                    raise not_syncnorm(self._address, answer, read=False)
                yield from _events(_noted(answer.iter_lines(), on_line))
            except ValueError as error:  # an event that isn't JSON
                raise not_syncnorm(self._address, answer, read=False) from error
            finally:
                answer.close()


class RetryPeriod:
    """How long a client keeps retrying something that worked before."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._until: float | None = None
        self._wait_s = connection.pause_s
        self._was_there = False

    def renew(self) -> None:
        """The service answered."""
        self._until, self._wait_s, self._was_there = None, self._connection.pause_s, True

    def wait(self, error: ClientError) -> None:
        """Pause before the next try. Raises: the error, if a retry can't help or the time is up."""
        now, connection = time.monotonic(), self._connection
        if not _passes(error) or (isinstance(error, NobodyAnswersError) and not self._was_there):
            raise error
        if self._until is None:
            self._until = now + connection.patience_s
            connection.on_lost(
                f"{str(error).split('. ')[0].rstrip('.')}. Trying again for {connection.patience_s:g} s."
            )
        if now >= self._until:
            raise error
        time.sleep(self._wait_s)
        self._wait_s = min(2 * self._wait_s, 5.0)
        connection.relocate()


def _passes(error: ClientError) -> bool:
    """Whether the error may be over soon. A restarted service answers 503 before it is ready."""
    if isinstance(error, ProblemError):
        return error.status == 429 or error.status in GATEWAY
    return isinstance(error, ServiceUnreachableError | ServiceTimeoutError) and not isinstance(error, NotSyncnormError)


def _wait_s(error: ClientError, safe: bool, repeatable: bool, pause_s: float | None) -> float | None:
    """Seconds before a request is sent again; None: never. A request that was refused for now is always safe to
    repeat."""
    if pause_s is None or isinstance(error, NotSyncnormError):
        return None
    if isinstance(error, NobodyAnswersError):
        return pause_s if repeatable else None
    if isinstance(error, ServiceUnreachableError):
        return pause_s if repeatable or safe else None
    if isinstance(error, ProblemError) and error.status in (429, 503) and error.retry_after_s is not None:
        return error.retry_after_s if error.retry_after_s <= _LONGEST_RETRY_AFTER_S else None
    return None


def _noted(lines: Iterator[str], on_line: Callable[[], None]) -> Iterator[str]:
    for line in lines:
        on_line()
        yield line


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
