"""Messages on their way to the service: in lanes, each sent again in its own time, over one client."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

import httpx
from pydantic import BaseModel

from syncnorm.trainer.contract.protocol import Event, Launch
from syncnorm.trainer.contract.text import storable_json, text_of

REQUEST_TIMEOUT_S = 5.0
EVENTS_KEPT = 1000
FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 15.0
TRIES = 10
"""Tries of a message that the service fails to accept while it accepts others."""


class Delivery(Enum):
    """The fate of a message."""

    TAKEN = auto()
    LATER = auto()
    """The service answers, but can't accept it now."""
    NEVER = auto()
    """It was refused, or can't be sent at all."""
    AWAY = auto()


@dataclass
class Lane:
    """Messages of one kind, in order. One that has to be retried delays no other lane."""

    name: str
    due: float = 0.0
    tries: int = 0
    failing_since: float = 0.0
    pause_s: float = FIRST_PAUSE_S

    def postpone(self, now: float) -> None:
        if not self.tries:
            self.failing_since = now
        self.tries += 1
        self.due = now + self.pause_s
        self.pause_s = min(2 * self.pause_s, LONGEST_PAUSE_S)

    def settle(self, due: float) -> None:
        self.due, self.tries, self.pause_s = due, 0, FIRST_PAUSE_S


@dataclass(frozen=True)
class Outgoing:
    lane: Lane
    path: str
    body: BaseModel
    done: Callable[[], None]
    """Called under the lock once the message is settled."""
    every_s: float = 0.0


@dataclass
class Undelivered:
    """What is to be sent: the newest state, and ordered messages."""

    ordered: deque[tuple[str, BaseModel]] = field(default_factory=deque)
    progress: dict[str, Any] | None = None
    events_left_out: int = 0

    def has_space_for_event(self) -> bool:
        """Whether one more event may be kept; one that may not is counted."""
        if sum(path == "events" for path, _ in self.ordered) < EVENTS_KEPT:
            return True
        self.events_left_out += 1
        return False

    def finish_first(self, fence: str, source: str) -> BaseModel:
        """Take the first ordered message out, which was delivered or never will be, and tell of events left out."""
        _, body = self.ordered.popleft()
        if left_out := self.events_left_out:
            self.events_left_out = 0
            message = f"{left_out} events of {source} were dropped: they came faster than they can be sent."
            self.ordered.append(("events", Event(fence=fence, kind="events_left_out", message=message)))
        return body


def client_of(launch: Launch, timeout_s: float = REQUEST_TIMEOUT_S) -> httpx.Client | None:
    """A client for the messages of this attempt; None without a service."""
    if launch.service_url is None:
        return None
    return httpx.Client(
        base_url=f"{launch.service_url.rstrip('/')}/internal/v1/attempts/{launch.attempt_id}/",
        headers={"Authorization": f"Bearer {launch.token}", "Content-Type": "application/json"},
        timeout=timeout_s,
        trust_env=False,
    )


def numbers_of(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The metrics that are numbers."""
    found = {}
    for name, value in metrics.items():
        with suppress(Exception):  # whatever a foreign object raises: it is not a number
            found[text_of(name)] = float(value)
    return found


def plain(value: object) -> Any:
    try:
        return storable_json(value, depth=8)
    except Exception:
        return text_of(value)
