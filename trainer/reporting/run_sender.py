"""A thread that delivers to one MLflow run, over outages, as long as this attempt may write to it."""

from __future__ import annotations

import logging
import math
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self

import httpx

from syncnorm.trainer.contract.text import storable_json

logger = logging.getLogger(__name__)

REQUEST_TIMEOUT_S = 10.0
LONGEST_PAUSE_S = 15.0
REFUSED = (httpx.codes.BAD_REQUEST, httpx.codes.REQUEST_ENTITY_TOO_LARGE, httpx.codes.UNPROCESSABLE_ENTITY)
"""Answers that will be the same next time."""


class _RunGoneError(Exception):
    """The run was deleted."""


class _GivenUpError(Exception):
    """Another attempt writes to the run now."""


class RunSender(ABC):
    """what: what is delivered, for the log. counts: whether this attempt is still current; None: unknown now.

    counts is asked after an MLflow outage: that may have been a partition, behind which another attempt was started
    that writes to the run.
    """

    def __init__(self, client: httpx.Client, run_id: str, what: str, counts: Callable[[], bool | None]) -> None:
        self._client = client
        self._run_id = run_id
        self._what = what
        self._counts = counts
        self._ending = threading.Event()
        self._deadline = math.inf
        self.delivered = self.was_away = False
        self._thread = threading.Thread(target=self._run, name=f"{what}-sender", daemon=True)

    @abstractmethod
    def _deliver(self) -> None:
        """Deliver everything there is. After an error it is called again, so it remembers what has arrived."""

    def start(self) -> Self:
        self._thread.start()
        return self

    def close(self, timeout_s: float) -> bool:
        """Deliver the rest for at most `timeout_s`; returns whether everything arrived."""
        close_all([self], timeout_s)
        return self.delivered

    def _end_by(self, deadline: float) -> None:
        self._deadline = deadline
        self._ending.set()

    def _wait(self) -> None:
        """Until the deadline, and for a request that is under way then."""
        self._thread.join(max(0.0, self._deadline + REQUEST_TIMEOUT_S - time.monotonic()))
        self._client.close()

    def _run(self) -> None:
        pause_s = 1.0
        while True:
            ending = self._ending.is_set()
            try:
                if self.was_away:
                    self._require_standing()
                    self.was_away = False
                self._deliver()
                pause_s = 1.0
                if ending:
                    self.delivered = True
                    return
            except _RunGoneError:
                logger.warning(
                    "MLflow run %s was deleted; its %s stay in the attempt's folder", self._run_id, self._what
                )
                return
            except _GivenUpError:
                logger.warning(
                    "another attempt writes to run %s now; this one sends no more %s", self._run_id, self._what
                )
                return
            except Exception as error:
                # Also an answer of another server, or a bug of ours: neither may end the thread.
                self._note_outage(error)
                pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
                if ending and time.monotonic() > self._deadline:
                    logger.warning(
                        "MLflow run %s lacks %s of this attempt: it could not take them. They stay in the attempt's "
                        "folder. If the job has another attempt, that one delivers them: %s",
                        self._run_id,
                        self._what,
                        error,
                    )
                    return
            self._ending.wait(pause_s) if not ending else time.sleep(0.5)

    def _note_outage(self, error: Exception) -> None:
        is_odd = not isinstance(error, httpx.HTTPError)
        if is_odd and not self.was_away:
            logger.warning(
                "MLflow gave an unexpected answer; %s are kept and sent later: %s: %s",
                self._what,
                type(error).__name__,
                error,
            )
        elif not is_odd:
            logger.info("MLflow is unavailable; %s are kept and sent later: %s", self._what, error)
        self.was_away = True

    def _require_standing(self) -> None:
        counts = self._counts()
        if counts is None:
            raise httpx.ConnectError("the service can't say whether this attempt is still current")
        if not counts:
            raise _GivenUpError

    def _log_batch(
        self, kind: str, items: Sequence[Mapping[str, Any]], done: Callable[[Sequence[Mapping[str, Any]]], object]
    ) -> None:
        """Send metrics, params or tags. One that MLflow will never accept is found by bisection and skipped, so that it
        blocks no other. done: called with those that need no further try."""
        answer = self._client.post("runs/log-batch", json={"run_id": self._run_id, kind: storable_json(items)})
        if answer.status_code not in REFUSED:
            answer.raise_for_status()
        elif len(items) > 1:
            self._check_run()
            middle = len(items) // 2
            self._log_batch(kind, items[:middle], done)
            self._log_batch(kind, items[middle:], done)
            return
        else:
            logger.warning("MLflow refused one of the %s; skipping it: %s: %s", kind, items[0], answer.text[:300])
        done(items)

    def _check_run(self) -> dict[str, Any]:
        """The run, which can be written to. Raises: _RunGoneError if it was deleted."""
        run: dict[str, Any] = self._get("runs/get", {"run_id": self._run_id})["run"]
        if run["info"]["lifecycle_stage"] == "deleted":
            raise _RunGoneError
        return run

    def _get(self, path: str, params: Mapping[str, Any]) -> dict[str, Any]:
        answer = self._client.get(path, params=params)
        if answer.status_code == httpx.codes.NOT_FOUND:
            raise _RunGoneError
        return dict(answer.raise_for_status().json())


def close_all(senders: Iterable[RunSender], timeout_s: float) -> None:
    """Close senders at the same time: all of them together take as long as the slowest, at most `timeout_s`."""
    senders, deadline = list(senders), time.monotonic() + timeout_s
    for sender in senders:
        sender._end_by(deadline)
    for sender in senders:
        sender._wait()
