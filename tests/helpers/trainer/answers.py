"""A service as a start hears it: its secrets, and whether it still counts."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Answers:
    """secrets: value by variable. beats: status of each answer to a heartbeat, the last one from there on.

    until: a phase from which on heartbeats are refused, as of a start that was given up.
    """

    def __init__(self, secrets: dict[str, str], beats: tuple[int, ...], until: str | None) -> None:
        self._secrets = secrets
        self._beats = list(beats)
        self._until = until
        self.asked: list[str] = []
        """Path of each question."""
        self.url = ""

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        self.asked.append(path)
        if path.endswith("/secrets"):
            return 200, {"values": self._secrets}
        status = 200
        if path.endswith("/heartbeat"):
            status = self._beats.pop(0) if len(self._beats) > 1 else self._beats[0]
            status = 409 if body["phase"] == self._until else status
        return status, {"stop": None, "lease_s": 60}


@contextmanager
def answering(
    secrets: dict[str, str] | None = None, beats: tuple[int, ...] = (200,), until: str | None = None
) -> Iterator[Answers]:
    answers = Answers(secrets or {}, beats, until)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, value = answers.answer(self.path, body)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(value).encode())

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        answers.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield answers
        finally:
            server.shutdown()
            thread.join()
