"""Reports an attempt to the service from a background thread; undelivered messages are kept and sent later."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping

import httpx
from pydantic import BaseModel

from syncnorm.trainer.contract.plan import Guarantees
from syncnorm.trainer.contract.profile import ProfileAnswer
from syncnorm.trainer.contract.protocol import (
    CheckpointFact,
    Event,
    Exit,
    GuaranteesReport,
    Heartbeat,
    Launch,
    LogLines,
    Phase,
    Placement,
    Profile,
    Progress,
    RankPlacement,
    Reply,
    Result,
    Stacks,
    StacksWanted,
    StopRequest,
    ThreadStack,
)
from syncnorm.trainer.contract.text import storable, text_of
from syncnorm.trainer.reporting.delivery import (
    FIRST_PAUSE_S,
    LONGEST_PAUSE_S,
    TRIES,
    Delivery,
    Lane,
    Outgoing,
    Undelivered,
    client_of,
    numbers_of,
    plain,
)
from syncnorm.trainer.reporting.log_buffer import Level, LogBuffer
from syncnorm.trainer.reporting.redaction import redact

logger = logging.getLogger(__name__)

HEARTBEAT_S = 5.0
PROGRESS_S = 1.0
LOGS_S = 1.0
LOG_MESSAGES_A_S = 20.0
"""Messages a second of all processes of an attempt: those of a large one send their lines less often."""


class Reporter:
    """The reporter of one process: the driver, or a rank.

    Nothing here blocks the caller or raises into it, whatever it is given. While the service is unavailable everything
    is kept in order (of heartbeats and progress the newest, of lines and events as many as fit, see log_buffer) and
    sent when it is back. Messages that the service refuses are dropped with a note. `stop_request` and `superseded`
    hold the service's latest answer.
    """

    def __init__(self, launch: Launch, rank: int, *, client: httpx.Client | None = None) -> None:
        self._fence = launch.fence
        self._rank = rank
        self._source = "driver" if rank < 0 else f"rank-{rank}"
        self._client = client or client_of(launch)
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._ending = threading.Event()
        self._end_by = 0.0
        self._undelivered = Undelivered()
        self._lines = LogBuffer(rank, launch.world_size + 1)
        self._logs_s = max(LOGS_S, launch.world_size / LOG_MESSAGES_A_S)
        self._beat, self._progress, self._logs, self._ordered = map(Lane, ("heartbeat", "progress", "logs", "ordered"))
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
        """Whether the caller is the reporter's own thread, which must not report about itself: that would never end."""
        return threading.current_thread() is self._thread

    def close(self, timeout_s: float = 10.0) -> None:
        """Deliver the remaining messages, for at most `timeout_s`."""
        self._end_by = time.monotonic() + timeout_s
        self._ending.set()
        self._wake.set()
        self._thread.join(timeout_s)
        if self._client:
            self._client.close()

    def hide(self, values: Iterable[str]) -> None:
        """From here on these secrets are kept out of everything that is sent."""
        self._hidden = tuple(values)

    @property
    def hidden(self) -> tuple[str, ...]:
        """The secrets that are kept out of everything that is sent."""
        return self._hidden

    def silent_s(self) -> float:
        """Seconds since the service was last heard; 0 without one."""
        return 0.0 if self._client is None else time.monotonic() - self._answered_at

    def enter(self, phase: Phase) -> None:
        """Begin a phase; sent at once with a heartbeat. Rank 0 and the driver also make an event of it."""
        with self._lock:
            self._phase, self._beat.due = phase, 0.0
        self._wake.set()
        if self._rank <= 0:
            self.event("phase", phase.replace("_", " "), phase=phase)

    def progress(
        self, *, epoch: int, epochs: int | None, step: int, steps: int | None, metrics: Mapping[str, float]
    ) -> None:
        # Stored as it is: a message is made of it once a second, not at every step.
        current = {"epoch": epoch, "epochs": epochs, "step": step, "steps": steps, "metrics": metrics}
        with self._lock:
            self._undelivered.progress, self._step = current, step

    def log(self, level: Level, text: str) -> None:
        self._lines.add(level, redact(text_of(text), self._hidden))  # before long ones are cut, perhaps within a secret

    def event(self, kind: str, message: str, **data: object) -> None:
        values = {name: plain(value) for name, value in data.items()}
        body = Event(fence=self._fence, kind=text_of(kind), message=text_of(message), data=values)
        with self._lock:
            if not self._undelivered.has_space_for_event():
                return
        self._put("events", body)

    def placement(self, ranks: list[RankPlacement]) -> None:
        self._put("placement", Placement(fence=self._fence, ranks=ranks))

    def guarantees(self, found: Guarantees) -> None:
        self._put("guarantees", GuaranteesReport(fence=self._fence, guarantees=found))

    def checkpoint(
        self,
        *,
        path: str,
        step: int,
        epoch: int,
        digest: str,
        size_bytes: int,
        kept: list[int],
        metrics: Mapping[str, float] | None = None,
        best_step: int | None = None,
    ) -> None:
        fact = CheckpointFact(
            fence=self._fence,
            path=path,
            step=step,
            epoch=epoch,
            digest=digest,
            size_bytes=size_bytes,
            kept=kept,
            metrics=numbers_of(metrics or {}),
            best_step=best_step,
        )
        self._put("checkpoints", fact)

    def checkpoints_to_spare(self) -> set[int]:
        """Steps from one of which another attempt would resume if the service heard no more of this one: the last
        checkpoint it is known to have heard of, and the next one, for which only its answer may be lost."""
        with self._lock:
            facts = (body.step for _, body in self._undelivered.ordered if isinstance(body, CheckpointFact))
            return {step for step in (self._known_checkpoint, next(facts, None)) if step is not None}

    def stacks(self, request: int, threads: list[ThreadStack]) -> None:
        self._put("stacks", Stacks(fence=self._fence, rank=self._rank, request=request, threads=threads))

    def profile(self, request: int, answer: ProfileAnswer) -> None:
        self._put("profile", Profile(fence=self._fence, rank=self._rank, request=request, answer=answer))

    def request_stacks(self) -> None:
        """Ask all processes of the attempt for their stacks, which are kept with it."""
        self._put("stacks/request", StacksWanted(fence=self._fence))

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
                # Any exception: a dead thread would mean no progress, no checkpoints, and no stop request.
                is_done, pause_s = False, 1.0
                self._report_own_failure(error)
            if self.superseded or (ending and (is_done or time.monotonic() > self._end_by)):
                return
            self._wake.wait(pause_s)
            self._wake.clear()

    def _report_own_failure(self, error: BaseException) -> None:
        """Report it once, in logs and events: a bug that repeats would do so for ever."""
        self._failures += 1
        if self._failures > 1:
            return
        text = (
            f"{self._source} could not report to the service and keeps trying: {type(error).__name__}: {text_of(error)}"
        )
        self._lines.add("ERROR", text)
        self._put("events", Event(fence=self._fence, kind="reporter_failed", message=text))

    def _send_all(self) -> bool:
        """Send everything that is due; returns whether nothing is left."""
        while (out := self._next()) is not None:
            delivery = self._send(out)
            now = time.monotonic()
            if delivery is Delivery.AWAY:
                self._away_pause_s = min(2 * self._away_pause_s, LONGEST_PAUSE_S)
                return False
            self._away_pause_s = FIRST_PAUSE_S
            if delivery is Delivery.TAKEN:
                self._taken_at = now
            with self._lock:
                if delivery is Delivery.LATER and not self._is_hopeless(out.lane):
                    out.lane.postpone(now)
                    continue
                out.done()
                out.lane.settle(now + out.every_s)
            if delivery is Delivery.LATER:
                self._note(out.path, f"the service failed {TRIES} times to accept it, and accepted others")
        with self._lock:
            return not (self._undelivered.ordered or self._lines or self._undelivered.progress)

    def _is_hopeless(self, lane: Lane) -> bool:
        """Whether the service has accepted other messages, but never this one."""
        return lane.tries >= TRIES and self._taken_at > lane.failing_since

    def _next(self) -> Outgoing | None:
        """The next message that is due: first heartbeat and progress."""
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

    def _next_beat(self) -> Outgoing:
        beat = Heartbeat(fence=self._fence, source=self._source, phase=self._phase, step=self._step)
        return Outgoing(self._beat, "heartbeat", beat, lambda: None, HEARTBEAT_S)

    def _next_progress(self) -> Outgoing | None:
        if (current := self._undelivered.progress) is None:
            return None

        def done() -> None:
            if self._undelivered.progress is current:
                self._undelivered.progress = None

        body = Progress.model_validate({**current, "fence": self._fence, "metrics": numbers_of(current["metrics"])})
        return Outgoing(self._progress, "progress", body, done, PROGRESS_S)

    def _next_ordered(self) -> Outgoing | None:
        if not self._undelivered.ordered:
            return None
        path, body = self._undelivered.ordered[0]
        if isinstance(body, Exit) and self._lines and not self._logs.tries:
            return None  # once it has ended, no lines of it are taken
        return Outgoing(self._ordered, path, body, self._ordered_done)

    def _ordered_done(self) -> None:
        body = self._undelivered.finish_first(self._fence, self._source)
        if isinstance(body, CheckpointFact) and not self.superseded:
            self._known_checkpoint = body.step

    def _next_lines(self) -> Outgoing | None:
        if not (lines := self._lines.batch()):
            return None
        body = LogLines(fence=self._fence, lines=lines)
        return Outgoing(self._logs, "logs", body, lambda: self._lines.forget(lines), self._logs_s)

    def _send(self, out: Outgoing) -> Delivery:
        if self._client is None:
            return Delivery.TAKEN
        try:
            content = redact(out.body.model_dump_json(), self._hidden)
            answer = self._client.post(out.path, content=content)
        except httpx.HTTPError:
            return Delivery.AWAY
        except Exception as error:
            self._note(out.path, f"it can't be sent: {type(error).__name__}: {text_of(error)}")
            return Delivery.NEVER
        self._answered_at = time.monotonic()
        return self._interpret(out, answer)

    def _note(self, path: str, why: str) -> None:
        """Log a dropped message the first, tenth, hundredth … time only, since the log line is a message, too."""
        self._left_out[path] += 1
        count = self._left_out[path]
        if str(count).strip("0") == "1":
            logger.warning("dropped %d messages of %s (%s), the last because %s", count, self._source, path, why)

    def _interpret(self, out: Outgoing, answer: httpx.Response) -> Delivery:
        if answer.status_code == httpx.codes.CONFLICT:
            self.superseded = True
            return Delivery.TAKEN
        if answer.is_server_error or answer.status_code == httpx.codes.TOO_MANY_REQUESTS:
            return Delivery.LATER
        if not answer.is_success:
            self._note(out.path, f"the service answered {answer.status_code}: {storable(answer.text, 300)}")
            return Delivery.NEVER
        try:
            self.stop_request = Reply.model_validate_json(answer.content).stop
        except ValueError:
            return Delivery.LATER  # a server between us and the service answered instead
        return Delivery.TAKEN
