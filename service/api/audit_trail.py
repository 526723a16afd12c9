"""Refused requests, for the audit. Repetitions are counted, so that a client in a loop can't fill the database.

Completed actions are not recorded here: the store writes them in the transaction of the change itself.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, replace
from typing import Any

from syncnorm.service.api.auth import Principal, UnauthorizedError
from syncnorm.service.jobs.actors import Actor, NewAuditEntry, Outcome, action_of
from syncnorm.service.store.administration.audit import AuditTable

logger = logging.getLogger(__name__)

_MOST_KINDS = 200
"""Different refusals within a window that get entries of their own."""
_MOST_WAITING = 10_000
"""Entries kept while the database can't be written to; the oldest are dropped first."""


_STOP_S = 2.0
"""Limit for writing the last entries; an unavailable database must not keep the process alive."""


@dataclass
class AuditTrail:
    """Writes the first refusal of a kind at once, and its repetitions as one entry with their number a minute later."""

    audit: AuditTable
    every_s: float = 0.3
    window_s: float = 60.0
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[NewAuditEntry] = deque(maxlen=_MOST_WAITING)
        self._repeated: dict[tuple[Any, ...], tuple[NewAuditEntry, int]] = {}
        self._began = self.clock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def add(self, entry: NewAuditEntry) -> None:
        with self._lock:
            self._turn_over()
            key = _kind(entry)
            if key not in self._repeated and len(self._repeated) >= _MOST_KINDS:
                entry = replace(
                    entry, by=Actor("user"), object="", detail="more than 200 different refusals within a minute"
                )
                key = _kind(entry)
            known = self._repeated.get(key)
            self._repeated[key] = (entry, known[1] + 1) if known else (entry, 0)
            if known is None:
                self._waiting.append(entry)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(_STOP_S)

    def _run(self) -> None:
        while not self._stop.wait(self.every_s):
            self.flush()
        self.flush(to_the_end=True)

    def flush(self, *, to_the_end: bool = False) -> None:
        """to_the_end: also repetitions whose minute is not over."""
        with self._lock:
            self._turn_over(at_once=to_the_end)
            entries = list(self._waiting)
            self._waiting.clear()
        if not entries:
            return
        try:
            self.audit.add(entries)
        except Exception:
            logger.exception("could not write audit entries; retrying")
            with self._lock:
                self._waiting.extendleft(reversed(entries))

    def _turn_over(self, *, at_once: bool = False) -> None:
        if not at_once and self.clock() - self._began < self.window_s:
            return
        self._waiting.extend(replace(entry, count=count) for entry, count in self._repeated.values() if count)
        self._repeated.clear()
        self._began = self.clock()


def _kind(entry: NewAuditEntry) -> tuple[Any, ...]:
    return (entry.by.owner, entry.by.token_id, entry.action, entry.object, entry.outcome, entry.detail)


def refusals(scope: MutableMapping[str, Any], status: int) -> Iterator[NewAuditEntry]:
    """The audit entry, if any, of a request that was answered with `status`, besides those of its changes."""
    state: Mapping[str, Any] = scope["state"]
    request_id = state["request_id"]
    if status == 401:
        denied = state.get("denied")
        yield _failed_authentication(denied, (scope.get("client") or ("",))[0], request_id)
        return
    route = getattr(scope.get("route"), "path", "")
    is_plan = b"dry_run=true" in scope.get("query_string", b"")
    if status < 400 or scope["method"] in ("GET", "HEAD", "OPTIONS") or not route.startswith("/v1/") or is_plan:
        return
    who: Principal | None = state.get("principal")
    by = who.actor if who else Actor("user", request_id=request_id)
    outcome: Outcome = "refused" if status < 500 else "failed"
    detail = f"{status} {state.get('code', '')}".strip()
    yield NewAuditEntry(by, action_of(scope["method"], route), _object(scope, by), outcome=outcome, detail=detail)


def _failed_authentication(denied: UnauthorizedError | None, client: str, request_id: str) -> NewAuditEntry:
    token = denied.token if denied else None
    by = Actor("user", token.owner if token else None, token.id if token else None, request_id)
    detail = denied.reason if denied else "the attempt token does not match"
    return NewAuditEntry(by, "auth.failed", client, outcome="refused", detail=detail)


def _object(scope: Mapping[str, Any], by: Actor) -> str:
    """The object that the address names, in the form that entries about changes use."""
    parts: Mapping[str, str] = scope.get("path_params", {})
    for name in ("job_id", "study_id", "token_id"):
        if name in parts:
            return str(parts[name])
    if "sha256" in parts:
        return f"sha256:{parts['sha256']}"
    return f"{by.owner}/{parts['name']}" if "name" in parts else ""
