"""HTTP on a connection, with time limits: uvicorn itself waits for the rest of a request for ever (0.54)."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Callable
from enum import Enum
from http import HTTPStatus

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_S = 20.0
"""From the first byte of a request, or from the connection, to the end of its headers."""
IDLE_S = 30.0
"""Longest pause within a body; the time a body may take whatever its rate."""
MIN_RATE = 1024
"""Least average rate of a body in bytes a second; a package of 64 MiB may take hours."""
MAX_HEAD = 64 * 2**10
"""Bytes of request line and headers."""
UNREAD_S = 300
"""A client that has read nothing of an answer for so long is disconnected."""
_UPGRADE = re.compile(rb"^upgrade(?=[ \t]*:)", re.IGNORECASE | re.MULTILINE)
_EMPTY_LINE = re.compile(rb"^\r?\n", re.MULTILINE)


class Part(Enum):
    """What a connection is waiting for."""

    HEAD = "the headers"
    BODY = "the body"
    NOTHING = "nothing"


class BoundedHttp(HttpToolsProtocol):
    """Closes a connection whose request does not arrive in time. An answer may take any time."""

    _part = Part.NOTHING
    _began_at = _last_at = 0.0
    _received = 0
    _begun_line = b""
    _is_in_headers = False
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for(Part.HEAD)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        if self._part is Part.NOTHING:
            self._wait_for(Part.HEAD)
        self._last_at = self.loop.time()
        self._received += len(data)
        super().data_received(self._without_upgrade(data) if self._part is Part.HEAD else data)
        if self._part is Part.HEAD and self._received > MAX_HEAD:
            self._end(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def _without_upgrade(self, data: bytes) -> bytes:
        """The head without the offer of an upgrade, since the service has neither HTTP/2 nor WebSockets.

        Java's HttpClient and `curl --http2` offer one with each request. A server may ignore it, but httptools drops
        the body of such a request, and all that follows on the connection (0.9).
        """
        data, self._begun_line = self._begun_line + data, b""
        self._is_in_headers = self._is_in_headers or b"\n" in data
        if not self._is_in_headers:
            return data  # what is no HTTP, such as a greeting of TLS, is refused at once
        end = _EMPTY_LINE.search(data)
        headers = end.start() if end else data.rfind(b"\n") + 1
        if not end:
            data, self._begun_line = data[:headers], data[headers:]
        return _UPGRADE.sub(b"upgrade-passed-over", data[:headers]) + data[headers:]

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._part is not Part.HEAD:
            self._wait_for(Part.HEAD)

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._wait_for(Part.BODY)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._part = Part.NOTHING

    def _wait_for(self, part: Part) -> None:
        self._part, self._received, self._is_in_headers = part, 0, False
        self._began_at = self._last_at = self.loop.time()
        if self._timer is None:
            self._timer = self.loop.call_at(self._due_at(), self._check)

    def _due_at(self) -> float:
        if self._part is Part.HEAD:
            return self._began_at + HEAD_S
        return min(self._last_at + IDLE_S, self._began_at + IDLE_S + self._received / MIN_RATE)

    def _check(self) -> None:
        """One timer for each connection, reset when it fires: a request needs no timer of its own."""
        self._timer = None
        if self._part is Part.NOTHING or self.transport.is_closing():
            return
        if self.flow.read_paused:  # the service is slow, not the client
            self._wait_for(self._part)
        elif self.loop.time() < self._due_at():
            self._timer = self.loop.call_at(self._due_at(), self._check)
        else:
            self._end(HTTPStatus.REQUEST_TIMEOUT)

    def _end(self, status: HTTPStatus) -> None:
        is_answering = self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete
        said_nothing = self.scope is None and not self._received
        if not (self.transport.is_closing() or is_answering or said_nothing):
            head = f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            self.transport.write(head.encode())
        self.transport.close()


class _Server(uvicorn.Server):
    """uvicorn closes the lifespan only after requests have ended (0.54), so it can't end those that wait for news."""

    def __init__(self, config: uvicorn.Config, end_followers: Callable[[], None]) -> None:
        super().__init__(config)
        self._end_followers = end_followers

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._end_followers()
        await super().shutdown(sockets)


def make_server(app: ASGIApp, end_followers: Callable[[], None]) -> uvicorn.Server:
    """The web server of this service, for listeners that `bound_connections` has prepared.

    end_followers: called first when the server stops, so that requests that wait for news are answered and not cut off.
    """
    return _Server(
        uvicorn.Config(
            app,
            http=BoundedHttp,
            ws="none",
            log_config=None,
            timeout_graceful_shutdown=2,
            access_log=False,
            server_header=False,
        ),
        end_followers,
    )


def bound_connections(listener: socket.socket) -> None:
    """Close connections of a listener when the other side is gone, or reads nothing for `UNREAD_S`."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_S * 1000)
