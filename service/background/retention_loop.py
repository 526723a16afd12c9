"""Deletes what is older or larger than the limits: log lines, events, audit entries and idempotency keys."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from syncnorm.service.background.loop import Loop
from syncnorm.service.settings import Settings
from syncnorm.service.store.administration.retention import BATCH, RetentionTable

logger = logging.getLogger(__name__)

_EVERY_S = 600.0
_FIRST_S = 60.0
_REST_S = 0.2
"""Pause between two batches, in which others may write."""
MIB = 2**20


class Observer(Protocol):
    """Counts deleted rows, for metrics."""

    def pruned(self, table: str, rows: int) -> None: ...


@dataclass(frozen=True)
class Retention:
    """Any number of processes may do this concurrently."""

    kept: RetentionTable
    now: Callable[[], datetime]
    settings: Settings
    metrics: Observer

    def loops(self) -> list[Loop]:
        """Sweeps periodically."""
        loop = Loop("retention", lambda: self.sweep(loop.stopping), lambda: _EVERY_S, first_rest_s=_FIRST_S)
        return [loop]

    def sweep(self, stop: threading.Event, rest_s: float = _REST_S) -> None:
        """Delete everything that is due, in batches. An error ends one part; the first is raised at the end."""
        first: Exception | None = None
        parts: dict[str, Callable[[], Iterator[int]]] = {
            "log_lines": self._lines,
            "events": self._events,
            "audit": lambda: self._all(self.kept.forget_audit, self.settings.audit_retention_days),
            "idempotency": lambda: self._all(self.kept.forget_answers, self.settings.idempotency_retention_days),
            "free_pages": self._space,
        }
        for table, batches in parts.items():
            removed = 0
            try:
                for rows in batches():
                    removed += rows
                    self.metrics.pruned(table, rows)
                    if stop.wait(rest_s):
                        return
            except Exception as error:
                logger.exception("could not delete old rows; retrying in 10 minutes", extra={"table": table})
                first = first or error
            if removed:
                logger.info("deleted old rows", extra={"table": table, "rows": removed})
        if first is not None:
            raise first

    def _lines(self) -> Iterator[int]:
        """Log lines of jobs that ended long ago; then, while there are too many, of those that ended first."""
        before = self.now() - timedelta(days=self.settings.log_retention_days)
        while jobs := self.kept.ended_with_lines(before):
            for job_id in jobs:
                yield from self._until_less(lambda job_id=job_id: self.kept.forget_lines(job_id))  # type: ignore[misc]
        while self._too_many():
            jobs = self.kept.ended_with_lines(None, limit=1) or self.kept.largest_logs(limit=1)
            if not jobs:
                return
            yield self.kept.forget_lines(jobs[0])

    def _too_many(self) -> bool:
        return self.kept.kept_lines()[1] > self.settings.log_mb_total * MIB

    def _events(self) -> Iterator[int]:
        before = self.now() - timedelta(days=self.settings.event_retention_days)
        while jobs := self.kept.ended_with_events(before):
            for job_id in jobs:
                yield from self._until_less(lambda job_id=job_id: self.kept.forget_reported_events(job_id))  # type: ignore[misc]

    def _all(self, forget: Callable[..., int], days: int) -> Iterator[int]:
        before = self.now() - timedelta(days=days)
        yield from self._until_less(lambda: forget(before))

    def _space(self) -> Iterator[int]:
        while self.kept.give_space_back():
            yield 0

    @staticmethod
    def _until_less(forget: Callable[[], int]) -> Iterator[int]:
        """Batches until one is not full."""
        rows = BATCH
        while rows == BATCH:
            rows = forget()
            yield rows
