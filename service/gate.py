"""Before and after every request: a request id, a size limit, a measured duration, a line in the audit trail."""

from __future__ import annotations

import logging
import queue
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.store import AuditEntry, Store

logger = logging.getLogger(__name__)

MAX_BODY = 2**20
MAX_PACKAGE = 64 * 2**20


class Gate:
    """Plain ASGI, so that streams pass through untouched."""

    def __init__(self, app: ASGIApp, observe: Callable[[str, str, int, float], None], trail: Trail) -> None:
        """observe: called with method, route, status and seconds."""
        self._app = app
        self._observe = observe
        self._trail = trail

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = f"req_{uuid.uuid4().hex}"
        scope.setdefault("state", {})["request_id"] = request_id
        began = time.perf_counter()
        status = 500

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        try:
            await self._app(scope, _limited(scope, receive), answer)
        finally:
            route = getattr(scope.get("route"), "path", "unmatched")
            self._observe(scope["method"], route, status, time.perf_counter() - began)
            if scope["method"] not in ("GET", "HEAD", "OPTIONS") and scope["path"].startswith("/v1/"):
                who = scope["state"].get("principal", "nobody")
                entry = AuditEntry(datetime.now(UTC), who, scope["method"], scope["path"][:400], status, request_id)
                self._trail.add(entry)


def _limited(scope: Scope, receive: Receive) -> Receive:
    most = MAX_PACKAGE if scope["path"].startswith("/v1/packages/") else MAX_BODY
    declared = Headers(scope=scope).get("content-length", "")
    size = 0

    async def limited() -> Message:
        nonlocal size
        if declared.isdigit() and int(declared) > most:
            raise HTTPException(413, f"The body must not exceed {most} bytes, got {declared}.")
        message = await receive()
        size += len(message.get("body", b""))
        if size > most:
            raise HTTPException(413, f"The body must not exceed {most} bytes.")
        return message

    return limited


@dataclass
class Trail:
    """Audit entries, written a few times a second, so that no request waits for its own line."""

    store: Store
    every_s: float = 0.3

    def __post_init__(self) -> None:
        self._waiting: queue.SimpleQueue[AuditEntry] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="audit")

    def start(self) -> None:
        self._thread.start()

    def add(self, entry: AuditEntry) -> None:
        self._waiting.put(entry)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self.every_s):
            self.flush()
        self.flush()

    def flush(self) -> None:
        entries = []
        while not self._waiting.empty():
            entries.append(self._waiting.get())
        if not entries:
            return
        try:
            self.store.add_audit(entries)
        except Exception:
            logger.exception("audit entries could not be written; trying again")
            for entry in entries:
                self._waiting.put(entry)
