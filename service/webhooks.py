"""Tells other programs what became of jobs: each event posted, signed, in order, until it was taken.

Signed as Standard Webhooks 1.0 has it (standardwebhooks.com). What was told last is kept in the database, so that
nothing is left out or lost over a restart; an answer that was lost makes an event come twice, under the same id.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import httpx

from service.jobs import Job, JobState
from service.store import Store, StoredEvent

logger = logging.getLogger(__name__)

KINDS = (*(state.value for state in JobState), "non_finite", "checkpoint_fallback", "statistics_alert")
"""Moves of jobs, and what their statistics and checkpoints gave cause to tell."""
LEASE = "webhooks"
_LOOK_S = 1.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 300.0
_GIVE_UP_AFTER = timedelta(days=3)
_PAGE = 100
_SETTLED_S = 2.0
"""Numbers are given out in order, but become visible when their transactions end."""


@dataclass
class _Receiver:
    url: str
    key: str
    """Under which the database remembers how far it has got; the address itself may hold a secret."""
    pause_s: float = 0.0
    next_try: datetime | None = None


class Webhooks:
    """One replica sends at a time, under a lease."""

    def __init__(self, store: Store, urls: Sequence[str], secret: bytes, http: httpx.Client, holder: str) -> None:
        """secret: what receivers check signatures with."""
        self._store = store
        self._secret = secret
        self._http = http
        self._holder = holder
        self._receivers = [_Receiver(url, hashlib.sha256(url.encode()).hexdigest()) for url in urls]

    def run(self, stop: threading.Event) -> None:
        """Send until told to stop; an error in one round does not end the loop."""
        while self._receivers and not stop.wait(_LOOK_S):
            try:
                self.tick()
            except Exception:
                logger.exception("webhooks could not be sent; trying again")

    def tick(self) -> None:
        """Bring every receiver up to date that is not being waited for."""
        if self._store.take_lease(self._holder, 30.0, LEASE) is None:
            return
        for receiver in self._receivers:
            if receiver.next_try is None or self._store.now() >= receiver.next_try:
                self._catch_up(receiver)

    def _catch_up(self, receiver: _Receiver) -> None:
        after = self._store.webhook_position(receiver.key)
        until = self._store.now() - timedelta(seconds=_SETTLED_S)
        for event in self._store.events_of_kinds(KINDS, after, until, _PAGE):
            if not self._tell(receiver, event):
                return
            self._store.set_webhook_position(receiver.key, event.seq)

    def _tell(self, receiver: _Receiver, event: StoredEvent) -> bool:
        """Whether to go on with the next one."""
        job = self._store.job(event.job_id)
        if job is None:  # deleted since
            return True
        now = self._store.now()
        content = json.dumps(payload(job, event)).encode()
        headers = {"Content-Type": "application/json", **signature(self._secret, f"evt_{event.seq}", now, content)}
        try:
            answer = self._http.post(receiver.url, content=content, headers=headers)
            if answer.is_success:
                receiver.pause_s, receiver.next_try = 0.0, None
                return True
            why = str(answer.status_code)
        except httpx.HTTPError as error:
            why = type(error).__name__
        if now - event.at > _GIVE_UP_AFTER:
            logger.error("webhook given up", extra={"event": event.seq, "why": why})
            return True
        receiver.pause_s = min(max(_FIRST_PAUSE_S, 2 * receiver.pause_s), _LONGEST_PAUSE_S)
        receiver.next_try = now + timedelta(seconds=receiver.pause_s)
        logger.warning("webhook has to wait", extra={"event": event.seq, "why": why, "pause_s": receiver.pause_s})
        return False


def payload(job: Job, event: StoredEvent) -> dict[str, object]:
    facts = {"job_id": job.id, "name": job.name, "project": job.project, "owner": job.owner, "labels": job.labels}
    data = {**facts, "kind": event.kind, "message": event.message, "details": event.data or {}}
    return {"type": f"job.{event.kind}", "timestamp": event.at.isoformat(), "data": data}


def signature(secret: bytes, event_id: str, at: datetime, content: bytes) -> dict[str, str]:
    """The three headers of Standard Webhooks."""
    stamp = str(int(at.timestamp()))
    mac = hmac.new(secret, f"{event_id}.{stamp}.".encode() + content, hashlib.sha256).digest()
    signed = f"v1,{base64.b64encode(mac).decode()}"
    return {"webhook-id": event_id, "webhook-timestamp": stamp, "webhook-signature": signed}
