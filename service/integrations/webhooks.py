"""Sends events to webhook receivers: signed, in order, and again until they are accepted.

Signed as in Standard Webhooks 1.0 (standardwebhooks.com). The position of each receiver is in the database, so a
restart loses nothing. If an answer is lost, the event is sent twice under the same id. An event that its receiver
refuses (4xx) is skipped, so that later ones arrive. Silence and 5xx are retried for three days.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime

from syncnorm.service.backend_errors import BackendError
from syncnorm.service.background.loop import Loop
from syncnorm.service.integrations.http_client import HttpClient, HttpRequest, HttpResponse
from syncnorm.service.jobs.job import Job, JobState
from syncnorm.service.store import Store, StoredEvent
from syncnorm.trainer.contract.text import storable_json

logger = logging.getLogger(__name__)

KINDS = (*(state.value for state in JobState), "non_finite", "checkpoint_fallback", "statistics_alert")
"""Events that receivers get: changes of state, and alerts about statistics and checkpoints."""
LEASE = "webhooks"
_LEASE_S = 30.0
"""Longer than one event can take, and renewed before each."""
_TOTAL_S, _MOST_BYTES = 10.0, 64 * 2**10
"""Limits of one answer."""
_POLL_S = 1.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S, _LONGEST_ASKED_S = 1.0, 300.0, 3600.0
_GIVE_UP_AFTER = timedelta(days=3)
_PAGE = 100
_SETTLED_S = 2.0
"""Time until an event is sent: numbers are assigned in order, but become visible when their transactions end."""
_GONE = 410
_NOT_NOW = {408, 425, 429}

Observe = Callable[[str], None]
"""Called with the fate of an event: delivered, refused or given_up, or postponed if it has to wait."""


class _Receiver:
    """One receiver: gets its events in order, at its own speed."""

    def __init__(self, store: Store, url: str, secret: bytes, http: HttpClient, holder: str, observe: Observe) -> None:
        self._store = store
        self._url = url
        self._secret = secret
        self._http = http
        self._holder = holder
        self._observe = observe
        self.key = hashlib.sha256(url.encode()).hexdigest()
        """Key of the receiver's position in the database; the address itself may hold a secret."""
        self._lease = f"{LEASE}-{self.key[:16]}"
        self._pause_s = 0.0
        self._next_try: datetime | None = None
        self.is_gone = False
        """It answered 410, and gets nothing until the service restarts."""

    def tick(self) -> None:
        """Send the events it has not had, unless a pause is running."""
        if self.is_gone or not self._may_act():
            return
        if self._next_try is None or self._store.now() >= self._next_try:
            self._catch_up()

    def _may_act(self) -> bool:
        """Whether this replica is the one that sends to it."""
        return self._store.leases.take(self._holder, _LEASE_S, self._lease) is not None

    def _catch_up(self) -> None:
        after = self._store.webhooks.position(self.key)
        until = self._store.now() - timedelta(seconds=_SETTLED_S)
        for event in self._store.history.events_of_kinds(KINDS, after, until, _PAGE):
            if not self._may_act() or not self._deliver(event):
                return
            self._store.webhooks.set_position(self.key, event.seq)

    def _deliver(self, event: StoredEvent) -> bool:
        """Whether to continue with the next event."""
        job = self._store.jobs.get(event.job_id)
        if job is None:  # deleted since
            return True
        now = self._store.now()
        content = json.dumps(storable_json(payload(job, event))).encode()
        headers = {"Content-Type": "application/json", **signature(self._secret, f"evt_{event.seq}", now, content)}
        try:
            call = HttpRequest("POST", self._url, content=content, headers=headers)
            answer = self._http.ask(call, total_s=_TOTAL_S, most_bytes=_MOST_BYTES)
        except BackendError as error:
            return self._wait(event, type(error.__cause__ or error).__name__, None)
        return self._judge(event, answer)

    def _judge(self, event: StoredEvent, answer: HttpResponse) -> bool:
        if answer.is_success:
            self._pause_s, self._next_try = 0.0, None
            self._observe("delivered")
            return True
        if answer.status == _GONE:
            self.is_gone = True
            logger.error(
                "webhook receiver answered 410 Gone; it gets no more events until the service restarts",
                extra=self._about(event),
            )
            return False
        if 400 <= answer.status < 500 and answer.status not in _NOT_NOW:
            about = {**self._about(event), "status": answer.status, "answer": answer.excerpt}
            logger.error("webhook receiver refused an event; skipping the event", extra=about)
            self._observe("refused")
            return True
        return self._wait(event, str(answer.status), _retry_after(answer, self._store.now()))

    def _wait(self, event: StoredEvent, why: str, asked_s: float | None) -> bool:
        now = self._store.now()
        if now - event.at > _GIVE_UP_AFTER:
            logger.error(
                "webhook event dropped, because its delivery failed for three days",
                extra={**self._about(event), "why": why},
            )
            self._observe("given_up")
            return True
        self._pause_s = min(max(_FIRST_PAUSE_S, 2 * self._pause_s), _LONGEST_PAUSE_S)
        pause_s = max(self._pause_s, min(asked_s or 0.0, _LONGEST_ASKED_S))
        self._next_try = now + timedelta(seconds=pause_s)
        about = {**self._about(event), "why": why, "pause_s": pause_s}
        logger.warning("webhook delivery failed; retrying", extra=about)
        self._observe("postponed")
        return False

    def _about(self, event: StoredEvent) -> dict[str, object]:
        return {"event": event.seq, "receiver": self.key[:8]}


class Webhooks:
    """A thread for each receiver, so that a slow one delays no other. Of several replicas one sends to each."""

    def __init__(
        self,
        store: Store,
        urls: Sequence[str],
        secret: bytes,
        http: HttpClient,
        holder: str,
        observe: Observe = lambda _what: None,
    ) -> None:
        """secret: what receivers check signatures with."""
        self._receivers = [_Receiver(store, url, secret, http, holder, observe) for url in urls]

    def loops(self) -> list[Loop]:
        """One for each receiver: webhooks, webhooks-2, …, in the order of the settings."""
        return [
            Loop("webhooks" if number == 1 else f"webhooks-{number}", receiver.tick, lambda: _POLL_S)
            for number, receiver in enumerate(self._receivers, 1)
        ]

    def tick(self) -> None:
        """One tick of each receiver, one after another."""
        for receiver in self._receivers:
            receiver.tick()


def _retry_after(answer: HttpResponse, now: datetime) -> float | None:
    """Seconds, from either form of the header (RFC 9110)."""
    text = answer.headers.get("retry-after", "")
    if text.isdigit():
        return float(text[:9])
    try:
        at = parsedate_to_datetime(text)
    except ValueError:
        return None
    return None if at.tzinfo is None else max(0.0, (at - now).total_seconds())


def payload(job: Job, event: StoredEvent) -> dict[str, object]:
    """What is posted: the event as the API shows it, with the job's own facts."""
    by = event.by
    data = {
        "job_id": job.id,
        "name": job.name,
        "project": job.project,
        "owner": job.owner,
        "labels": job.labels,
        "kind": event.kind,
        "message": event.message,
        "details": event.data or {},
        "actor": {"kind": by.kind, "owner": by.owner, "token_id": by.token_id} if by else None,
        "request_id": event.request_id,
    }
    return {"type": f"job.{event.kind}", "timestamp": event.at.isoformat(), "data": data}


def signature(secret: bytes, event_id: str, at: datetime, content: bytes) -> dict[str, str]:
    """The three headers of Standard Webhooks."""
    stamp = str(int(at.timestamp()))
    mac = hmac.new(secret, f"{event_id}.{stamp}.".encode() + content, hashlib.sha256).digest()
    signed = f"v1,{base64.b64encode(mac).decode()}"
    return {"webhook-id": event_id, "webhook-timestamp": stamp, "webhook-signature": signed}
