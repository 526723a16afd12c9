"""Tells the service how an attempt goes, from a thread of its own; keeps what can't be delivered and sends it later."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import httpx
from pydantic import BaseModel

from trainer.attempt import (
    CheckpointFact,
    Event,
    Exit,
    Heartbeat,
    Launch,
    LogLine,
    LogLines,
    Phase,
    Placement,
    Progress,
    RankPlace,
    Reply,
    Result,
    StopRequest,
)
from trainer.redact import redact

logger = logging.getLogger(__name__)

HEARTBEAT_S = 5.0
PROGRESS_S = 1.0
REQUEST_TIMEOUT_S = 5.0
LONGEST_PAUSE_S = 15.0
LINES_A_MESSAGE = 500
LINES_KEPT = 20_000

Level = Literal["DEBUG", "INFO", "WARNING", "ERROR"]


@dataclass(frozen=True)
class _Outgoing:
    path: str
    body: BaseModel


class Reporter:
    """One reporter a process: the driver's, or a rank's.

    Nothing here blocks the caller or raises into it. While the service is away everything is kept in order (log lines
    up to LINES_KEPT, of heartbeats and progress the newest) and sent when it is back. `stop_request` and `superseded`
    hold what the service last answered.
    """

    def __init__(self, launch: Launch, rank: int, *, client: httpx.Client | None = None) -> None:
        self._fence = launch.fence
        self._rank = rank
        self._source = "driver" if rank < 0 else f"rank-{rank}"
        self._client = client or _client(launch)
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._ending = threading.Event()
        self._ordered: deque[_Outgoing] = deque()
        self._lines: deque[LogLine] = deque(maxlen=LINES_KEPT)
        self._next_seq = 1
        self._progress: Progress | None = None
        self._phase: Phase = "preparing"
        self._step: int | None = None
        self._beat_due = 0.0
        self._progress_due = 0.0
        self._hidden: tuple[str, ...] = ()
        self._known_checkpoint: int | None = None
        self._heard_at = time.monotonic()
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
        return 0.0 if self._client is None else time.monotonic() - self._heard_at

    def enter(self, phase: Phase) -> None:
        """A phase begins; told at once with a heartbeat. Rank 0 and the driver also make an event of it."""
        with self._lock:
            self._phase, self._beat_due = phase, 0.0
        self._wake.set()
        if self._rank <= 0:
            self.event("phase", phase.replace("_", " "), phase=phase)

    def progress(
        self, *, epoch: int, epochs: int | None, step: int, steps: int | None, metrics: dict[str, float]
    ) -> None:
        message = Progress(fence=self._fence, epoch=epoch, epochs=epochs, step=step, steps=steps, metrics=metrics)
        with self._lock:
            self._progress, self._step = message, step

    def log(self, level: Level, text: str) -> None:
        with self._lock:
            for part in text.rstrip("\n").split("\n"):
                at = datetime.now(UTC).isoformat()
                self._lines.append(LogLine(rank=self._rank, seq=self._next_seq, at=at, level=level, text=part[:8192]))
                self._next_seq += 1

    def event(self, kind: str, message: str, **data: object) -> None:
        self._put("events", Event(fence=self._fence, kind=kind, message=message, data=data))

    def placed(self, ranks: list[RankPlace]) -> None:
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
            unsure = next((out.body.step for out in self._ordered if isinstance(out.body, CheckpointFact)), None)
            return {step for step in (self._known_checkpoint, unsure) if step is not None}

    def exit(self, result: Result) -> None:
        self._put("exit", Exit(fence=self._fence, result=result))

    def _put(self, path: str, body: BaseModel) -> None:
        with self._lock:
            self._ordered.append(_Outgoing(path, body))
        self._wake.set()

    def _run(self) -> None:
        pause_s = 0.25
        while True:
            ending = self._ending.is_set()
            delivered = self._send_all()
            if self.superseded or (ending and delivered):
                return
            pause_s = 0.25 if delivered else min(pause_s * 2, LONGEST_PAUSE_S)
            self._wake.wait(0.25 if ending else pause_s)
            self._wake.clear()

    def _send_all(self) -> bool:
        """Send everything that is due; False if something could not be delivered."""
        while (message := self._next()) is not None:
            outgoing, sent = message
            if not self._send(outgoing):
                return False
            with self._lock:
                sent()
        return True

    def _next(self) -> tuple[_Outgoing, Callable[[], None]] | None:
        """The next message, and what to forget once it is delivered (called under the lock)."""
        now = time.monotonic()
        with self._lock:
            if now >= self._beat_due:
                beat = Heartbeat(fence=self._fence, source=self._source, phase=self._phase, step=self._step)
                return _Outgoing("heartbeat", beat), lambda: setattr(self, "_beat_due", now + HEARTBEAT_S)
            # Before the lines, which may come faster than they can be sent.
            if self._progress is not None and (now >= self._progress_due or self._ending.is_set()):
                current = self._progress
                return _Outgoing("progress", current), lambda: self._progress_sent(current, now)
            if self._lines:
                lines = [self._lines[i] for i in range(min(len(self._lines), LINES_A_MESSAGE))]
                return _Outgoing("logs", LogLines(fence=self._fence, lines=lines)), lambda: self._forget_lines(lines)
            if self._ordered:
                first = self._ordered[0]
                return first, lambda: self._ordered_sent(first)
        return None

    def _ordered_sent(self, sent: _Outgoing) -> None:
        self._ordered.remove(sent)
        if isinstance(sent.body, CheckpointFact) and not self.superseded:
            self._known_checkpoint = sent.body.step

    def _forget_lines(self, lines: list[LogLine]) -> None:
        last = lines[-1].seq
        while self._lines and self._lines[0].seq <= last:
            self._lines.popleft()

    def _progress_sent(self, sent: Progress, now: float) -> None:
        self._progress_due = now + PROGRESS_S
        if self._progress is sent:
            self._progress = None

    def _send(self, message: _Outgoing) -> bool:
        if self._client is None:
            return True
        try:
            answer = self._client.post(message.path, content=redact(message.body.model_dump_json(), self._hidden))
        except httpx.HTTPError:
            return False
        self._heard_at = time.monotonic()
        if answer.status_code == httpx.codes.CONFLICT:
            self.superseded = True
            return True
        if answer.is_server_error or answer.status_code == httpx.codes.TOO_MANY_REQUESTS:
            return False
        if answer.is_success:
            self.stop_request = Reply.model_validate_json(answer.content).stop
        else:
            # Sending it again would be refused again: drop this one message rather than block all behind it.
            logger.warning("the service answered %d to %s: %s", answer.status_code, message.path, answer.text[:300])
        return True


def _client(launch: Launch) -> httpx.Client | None:
    if launch.service_url is None:
        return None
    return httpx.Client(
        base_url=f"{launch.service_url.rstrip('/')}/internal/v1/attempts/{launch.attempt_id}/",
        headers={"Authorization": f"Bearer {launch.token}", "Content-Type": "application/json"},
        timeout=REQUEST_TIMEOUT_S,
        trust_env=False,
    )


class ReportingHandler(logging.Handler):
    """Sends log records of this process to the job's logs."""

    def __init__(self, reporter: Reporter) -> None:
        super().__init__(logging.INFO)
        self._reporter = reporter

    def emit(self, record: logging.LogRecord) -> None:
        level: Level = "ERROR" if record.levelno >= logging.ERROR else "INFO"
        if record.levelno == logging.WARNING:
            level = "WARNING"
        if record.name.startswith(("httpx", "httpcore")):
            return
        self._reporter.log(level, self.format(record))
