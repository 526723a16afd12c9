"""Tells the service how an attempt goes, from a thread of its own; keeps what can't be delivered and sends it later."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

import httpx
from pydantic import BaseModel

from syncnorm.trainer.contract.protocol import (
    CheckpointFact,
    Event,
    Exit,
    Heartbeat,
    Launch,
    LogLines,
    Phase,
    Placement,
    Progress,
    RankPlacement,
    Reply,
    Result,
    StopRequest,
)
from syncnorm.trainer.contract.text import storable, storable_json, text_of
from syncnorm.trainer.reporting.log_buffer import Level, LogBuffer
from syncnorm.trainer.reporting.redaction import redact

logger = logging.getLogger(__name__)

HEARTBEAT_S = 5.0
PROGRESS_S = 1.0
LOGS_S = 1.0
LOG_MESSAGES_A_S = 20.0
"""Of all processes of an attempt together: those of a large one send their lines less often."""
REQUEST_TIMEOUT_S = 5.0
FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 15.0
TRIES = 10
"""Of a message that the service fails to take while it takes others."""
EVENTS_KEPT = 1000


class _Delivery(Enum):
    """What became of a message."""

    TAKEN = auto()
    LATER = auto()
    """The service is there and can't take it now."""
    NEVER = auto()
    """It was refused, or can't be sent at all."""
    AWAY = auto()


@dataclass
class _Lane:
    """Messages of one kind, in order. One that has to be sent again holds up no other lane."""

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
class _Outgoing:
    lane: _Lane
    path: str
    body: BaseModel
    done: Callable[[], None]
    """Called under the lock once nothing more will become of it."""
    every_s: float = 0.0


@dataclass
class _Undelivered:
    """What is to be told, newest state and ordered messages."""

    ordered: deque[tuple[str, BaseModel]] = field(default_factory=deque)
    progress: dict[str, Any] | None = None
    events_left_out: int = 0


class Reporter:
    """One reporter a process: the driver's, or a rank's.

    Nothing here blocks the caller or raises into it, whatever it is given. While the service is away everything is kept
    in order (of heartbeats and progress the newest, of lines and events as many as there is room for, see log_buffer)
    and sent when it is back. What the service refuses is left out with a note. `stop_request` and `superseded` hold
    what the service last answered.
    """

    def __init__(self, launch: Launch, rank: int, *, client: httpx.Client | None = None) -> None:
        self._fence = launch.fence
        self._rank = rank
        self._source = "driver" if rank < 0 else f"rank-{rank}"
        self._client = client or _client(launch)
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._ending = threading.Event()
        self._end_by = 0.0
        self._undelivered = _Undelivered()
        self._lines = LogBuffer(rank, launch.world_size + 1)
        self._logs_s = max(LOGS_S, launch.world_size / LOG_MESSAGES_A_S)
        self._beat, self._progress, self._logs, self._ordered = map(_Lane, ("heartbeat", "progress", "logs", "ordered"))
        self._away_pause_s = FIRST_PAUSE_S
        self._phase: Phase = "preparing"
        self._step: int | None = None
        self._hidden: tuple[str, ...] = ()
        self._known_checkpoint: int | None = None
        self._answered_at = time.monotonic()
        self._taken_at = 0.0
        self._left_out: Counter[str] = Counter()
        self._failures = 0
        self.stop_request: StopRequest | None = None
        self.superseded = False
        self._thread = threading.Thread(target=self._run, name="reporter", daemon=True)

    def start(self) -> Reporter:
        self._thread.start()
        return self

    def is_sending(self) -> bool:
        """Whether the caller is the reporter's own thread, of which nothing must be reported: that would never end."""
        return threading.current_thread() is self._thread

    def close(self, timeout_s: float = 10.0) -> None:
        """Deliver what is left, for at most `timeout_s`."""
        self._end_by = time.monotonic() + timeout_s
        self._ending.set()
        self._wake.set()
        self._thread.join(timeout_s)
        if self._client:
            self._client.close()

    def hide(self, values: Iterable[str]) -> None:
        """From here on these secrets are kept out of everything that is sent."""
        self._hidden = tuple(values)

    def silent_s(self) -> float:
        """Since the service was last heard; 0 where there is none."""
        return 0.0 if self._client is None else time.monotonic() - self._answered_at

    def enter(self, phase: Phase) -> None:
        """A phase begins; told at once with a heartbeat. Rank 0 and the driver also make an event of it."""
        with self._lock:
            self._phase, self._beat.due = phase, 0.0
        self._wake.set()
        if self._rank <= 0:
            self.event("phase", phase.replace("_", " "), phase=phase)

    def progress(
        self, *, epoch: int, epochs: int | None, step: int, steps: int | None, metrics: Mapping[str, float]
    ) -> None:
        # As it is: a message of it is made once a second, not at every step.
        told = {"epoch": epoch, "epochs": epochs, "step": step, "steps": steps, "metrics": metrics}
        with self._lock:
            self._undelivered.progress, self._step = told, step

    def log(self, level: Level, text: str) -> None:
        self._lines.add(level, redact(text_of(text), self._hidden))  # before long ones are cut, perhaps within a secret

    def event(self, kind: str, message: str, **data: object) -> None:
        told = {name: _plain(value) for name, value in data.items()}
        body = Event(fence=self._fence, kind=text_of(kind), message=text_of(message), data=told)
        with self._lock:
            if sum(path == "events" for path, _ in self._undelivered.ordered) >= EVENTS_KEPT:
                self._undelivered.events_left_out += 1
                return
        self._put("events", body)

    def placement(self, ranks: list[RankPlacement]) -> None:
        self._put("placement", Placement(fence=self._fence, ranks=ranks))

    def checkpoint(self, *, path: str, step: int, epoch: int, digest: str, size_bytes: int, kept: list[int]) -> None:
        fact = CheckpointFact(
            fence=self._fence, path=path, step=step, epoch=epoch, digest=digest, size_bytes=size_bytes, kept=kept
        )
        self._put("checkpoints", fact)

    def checkpoints_to_spare(self) -> set[int]:
        """Steps from one of which the service would have another attempt go on, should it hear no more of this one:
        the last checkpoint it is known to have heard of, and the next, of which only its answer may be lost."""
        with self._lock:
            facts = (body.step for _, body in self._undelivered.ordered if isinstance(body, CheckpointFact))
            return {step for step in (self._known_checkpoint, next(facts, None)) if step is not None}

    def exit(self, result: Result) -> None:
        self._put("exit", Exit(fence=self._fence, result=result))

    def _put(self, path: str, body: BaseModel) -> None:
        with self._lock:
            self._undelivered.ordered.append((path, body))
        self._wake.set()

    def _run(self) -> None:
        while True:
            ending = self._ending.is_set()
            try:
                is_done = self._send_all()
                pause_s = FIRST_PAUSE_S if ending else self._away_pause_s
            except BaseException as error:
                # Whatever it is: a silent thread would mean no progress, no checkpoints, and no stop that is heard.
                is_done, pause_s = False, 1.0
                self._report_own_failure(error)
            if self.superseded or (ending and (is_done or time.monotonic() > self._end_by)):
                return
            self._wake.wait(pause_s)
            self._wake.clear()

    def _report_own_failure(self, error: BaseException) -> None:
        """Once, in logs and events: a defect that repeats would do so for ever."""
        self._failures += 1
        if self._failures > 1:
            return
        text = f"{self._source} could not report, and goes on trying: {type(error).__name__}: {text_of(error)}"
        self._lines.add("ERROR", text)
        self._put("events", Event(fence=self._fence, kind="reporter_failed", message=text))

    def _send_all(self) -> bool:
        """Send everything that is due; whether nothing is left."""
        while (out := self._next()) is not None:
            told = self._send(out)
            now = time.monotonic()
            if told is _Delivery.AWAY:
                self._away_pause_s = min(2 * self._away_pause_s, LONGEST_PAUSE_S)
                return False
            self._away_pause_s = FIRST_PAUSE_S
            if told is _Delivery.TAKEN:
                self._taken_at = now
            with self._lock:
                if told is _Delivery.LATER and not self._is_hopeless(out.lane):
                    out.lane.postpone(now)
                    continue
                out.done()
                out.lane.settle(now + out.every_s)
            if told is _Delivery.LATER:
                self._note(out.path, f"the service failed {TRIES} times to take it, and took others")
        with self._lock:
            return not (self._undelivered.ordered or self._lines or self._undelivered.progress)

    def _is_hopeless(self, lane: _Lane) -> bool:
        """Whether the service has taken other messages, and never this one."""
        return lane.tries >= TRIES and self._taken_at > lane.failing_since

    def _next(self) -> _Outgoing | None:
        """What is due next: first what tells that the attempt lives, and how far it is."""
        now = time.monotonic()
        with self._lock:
            makers = (
                (self._beat, self._next_beat),
                (self._progress, self._next_progress),
                (self._ordered, self._next_ordered),
                (self._logs, self._next_lines),
            )
            hurry = self._ending.is_set()
            for lane, make in makers:
                is_due = now >= lane.due or (hurry and lane.tries == 0 and lane is not self._beat)
                if is_due and (out := make()) is not None:
                    return out
        return None

    def _next_beat(self) -> _Outgoing:
        beat = Heartbeat(fence=self._fence, source=self._source, phase=self._phase, step=self._step)
        return _Outgoing(self._beat, "heartbeat", beat, lambda: None, HEARTBEAT_S)

    def _next_progress(self) -> _Outgoing | None:
        if (current := self._undelivered.progress) is None:
            return None

        def done() -> None:
            if self._undelivered.progress is current:
                self._undelivered.progress = None

        body = Progress.model_validate({**current, "fence": self._fence, "metrics": _numbers(current["metrics"])})
        return _Outgoing(self._progress, "progress", body, done, PROGRESS_S)

    def _next_ordered(self) -> _Outgoing | None:
        if not self._undelivered.ordered:
            return None
        path, body = self._undelivered.ordered[0]
        if isinstance(body, Exit) and self._lines and not self._logs.tries:
            return None  # once it has ended, no lines of it are taken
        return _Outgoing(self._ordered, path, body, self._ordered_done)

    def _ordered_done(self) -> None:
        _, body = self._undelivered.ordered.popleft()
        if isinstance(body, CheckpointFact) and not self.superseded:
            self._known_checkpoint = body.step
        if left_out := self._undelivered.events_left_out:
            self._undelivered.events_left_out = 0
            message = f"{left_out} events of {self._source} were left out: they came faster than they can be told."
            self._undelivered.ordered.append(
                ("events", Event(fence=self._fence, kind="events_left_out", message=message))
            )

    def _next_lines(self) -> _Outgoing | None:
        if not (lines := self._lines.batch()):
            return None
        body = LogLines(fence=self._fence, lines=lines)
        return _Outgoing(self._logs, "logs", body, lambda: self._lines.forget(lines), self._logs_s)

    def _send(self, out: _Outgoing) -> _Delivery:
        if self._client is None:
            return _Delivery.TAKEN
        try:
            content = redact(out.body.model_dump_json(), self._hidden)
            answer = self._client.post(out.path, content=content)
        except httpx.HTTPError:
            return _Delivery.AWAY
        except Exception as error:
            self._note(out.path, f"it can't be sent: {type(error).__name__}: {text_of(error)}")
            return _Delivery.NEVER
        self._answered_at = time.monotonic()
        return self._interpret(out, answer)

    def _note(self, path: str, why: str) -> None:
        """A message was left out. Said once, ten times, a hundred times: what is said is a message, too."""
        self._left_out[path] += 1
        count = self._left_out[path]
        if str(count).strip("0") == "1":
            logger.warning("left out %d messages of %s (%s), the last because %s", count, self._source, path, why)

    def _interpret(self, out: _Outgoing, answer: httpx.Response) -> _Delivery:
        if answer.status_code == httpx.codes.CONFLICT:
            self.superseded = True
            return _Delivery.TAKEN
        if answer.is_server_error or answer.status_code == httpx.codes.TOO_MANY_REQUESTS:
            return _Delivery.LATER
        if not answer.is_success:
            self._note(out.path, f"the service answered {answer.status_code}: {storable(answer.text, 300)}")
            return _Delivery.NEVER
        try:
            self.stop_request = Reply.model_validate_json(answer.content).stop
        except ValueError:
            return _Delivery.LATER  # something between us and the service answered in its place
        return _Delivery.TAKEN


def _client(launch: Launch) -> httpx.Client | None:
    if launch.service_url is None:
        return None
    return httpx.Client(
        base_url=f"{launch.service_url.rstrip('/')}/internal/v1/attempts/{launch.attempt_id}/",
        headers={"Authorization": f"Bearer {launch.token}", "Content-Type": "application/json"},
        timeout=REQUEST_TIMEOUT_S,
        trust_env=False,
    )


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Those of the metrics that are numbers."""
    found = {}
    for name, value in metrics.items():
        with suppress(Exception):  # whatever a foreign object raises, it is no number
            found[text_of(name)] = float(value)
    return found


def _plain(value: object) -> Any:
    try:
        return storable_json(value, depth=8)
    except Exception:
        return text_of(value)


class ReportingHandler(logging.Handler):
    """Sends log records of this process to the job's logs."""

    def __init__(self, reporter: Reporter) -> None:
        super().__init__(logging.INFO)
        self._reporter = reporter

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith(("httpx", "httpcore")):
            return
        level: Level = "ERROR" if record.levelno >= logging.ERROR else "INFO"
        if record.levelno == logging.WARNING:
            level = "WARNING"
        try:
            text = self.format(record)
        except Exception as error:  # arguments that don't fit the message, or a value without a text
            text = f"{text_of(record.msg)} [the arguments of this log record can't be shown: {text_of(error)}]"
        self._reporter.log(level, text)
