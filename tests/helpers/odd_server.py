"""A real HTTP server on loopback that answers as told: with anything at all, slowly, in halves or not at all."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LOGIN_PAGE = "<!doctype html><html><body><form action='/login'>Sign in</form></body></html>"


@dataclass(frozen=True)
class Reply:
    """content: anything JSON has a form for, or bytes as they are."""

    content: Any = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    kind: str = "application/json"
    after_s: float = 0.0
    """Silence before it."""
    pause_s: float = 0.0
    """Between any two bytes of the body."""
    sent: float = 1.0
    """Share of the body that is sent before the connection is closed."""

    @property
    def body(self) -> bytes:
        return self.content if isinstance(self.content, bytes) else json.dumps(self.content).encode()


def page(status: int = 200) -> Reply:
    return Reply(LOGIN_PAGE.encode(), status, kind="text/html; charset=utf-8")


# What a server may say in the place of a JSON document, each with status 200.
ODD: dict[str, Reply] = {
    "login page": page(),
    "nothing": Reply(b""),
    "object": Reply({}),
    "list": Reply([]),
    "null": Reply(None),
    "number": Reply(17),
    "text": Reply("ok"),
    "no JSON": Reply(b"\x00\xff\xfe not json"),
    "half a document": Reply(b'{"data": {"clusterStatus": {"loadMe'),
    "half a body": Reply({"data": "x" * 1000}, sent=0.5),
    "deep": Reply(b"[" * 100_000),
    "redirect": Reply(b"", 302, {"Location": "http://127.0.0.1:9/login"}),
    "not modified": Reply(b"", 304),
    "too much": Reply(b'"' + b"x" * (17 * 2**20) + b'"'),
    "compressed": Reply(b"\x1f\x8b\x08 not really", headers={"Content-Encoding": "gzip"}),
}
# And with which others it may answer for a while.
AWAY: dict[str, Reply] = {
    "bad gateway": page(502),
    "error": Reply({"error": "boom"}, 500),
    "unauthorized": Reply({"error": "no"}, 401),
    "page that is not there": page(404),
    "busy": Reply({}, 429),
    "silence": Reply({}, after_s=5),
    "trickle": Reply({"data": "x" * 1000}, pause_s=0.2),
}


def timeout_for(bent: Mapping[str, Reply]) -> float:
    """Of a call to a server with these replies: short where one is silent, long enough for a busy host elsewhere."""
    return 0.5 if any(reply.after_s or reply.pause_s for reply in bent.values()) else 5.0


Answers = Callable[[str, str, Any], Reply]


@contextmanager
def serving(answer: Answers) -> Iterator[str]:
    """URL of a server. answer: given method, path without query, and the JSON body or None."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # else each body waits 40 ms for an ACK

        def _serve(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            sent = json.loads(raw) if raw and "json" in self.headers.get("Content-Type", "") else raw or None
            with suppress(OSError):  # callers give up in the middle; that is what this is for
                self._send(answer(self.command, self.path.partition("?")[0], sent))

        def _send(self, reply: Reply) -> None:
            stop.wait(reply.after_s)
            body = reply.body
            self.send_response(reply.status)
            for name, value in {"Content-Type": reply.kind, "Content-Length": str(len(body)), **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            part = body[: int(len(body) * reply.sent)]
            if reply.pause_s == 0:
                self.wfile.write(part)
            else:
                for byte in part:
                    if stop.wait(reply.pause_s):
                        return
                    self.wfile.write(bytes([byte]))
            if len(part) < len(body):
                self.close_connection = True

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815  # names of the standard library

        def log_message(self, *_: object) -> None: ...

    stop = threading.Event()
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            stop.set()
            server.shutdown()
            thread.join()


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Fails if the block takes longer."""
    began = time.monotonic()
    yield
    took_s = time.monotonic() - began
    assert took_s < seconds, f"took {took_s:.1f} s"
