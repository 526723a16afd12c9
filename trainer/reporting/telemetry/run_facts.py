"""Tags and datasets of a run, which rank 0 learns while it trains. A background thread delivers them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import httpx

from syncnorm.trainer.contract.text import storable, storable_json
from syncnorm.trainer.reporting.run_sender import REFUSED, RunSender

logger = logging.getLogger(__name__)

_LONGEST_TAG = 5000
Input = Mapping[str, Any]
"""A dataset with its context, as `runs/log-inputs` takes it."""


class RunFacts:
    """Undelivered facts. Of a tag only its newest value counts. Taking them in costs the training thread a lock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tags: dict[str, str] = {}
        self._delivered: dict[str, str] = {}
        self._inputs: list[Input] = []

    def tag(self, tags: Mapping[str, str]) -> None:
        with self._lock:
            self._tags |= tags

    def add_inputs(self, inputs: Sequence[Input]) -> None:
        with self._lock:
            self._inputs += inputs

    def new_tags(self) -> dict[str, str]:
        with self._lock:
            return {key: value for key, value in self._tags.items() if self._delivered.get(key) != value}

    def tags_delivered(self, tags: Mapping[str, str]) -> None:
        with self._lock:
            self._delivered |= tags

    def new_inputs(self) -> list[Input]:
        with self._lock:
            return list(self._inputs)

    def inputs_delivered(self, count: int) -> None:
        with self._lock:
            del self._inputs[:count]


class FactsSender(RunSender):
    """Delivers the facts of one attempt, each as soon as it is there. Sending one twice changes nothing."""

    def __init__(
        self, client: httpx.Client, run_id: str, facts: RunFacts, counts: Callable[[], bool | None] = lambda: True
    ) -> None:
        super().__init__(client, run_id, "tags and datasets", counts)
        self._facts = facts

    def _deliver(self) -> None:
        if inputs := self._facts.new_inputs():
            self._log_inputs(inputs)
            self._facts.inputs_delivered(len(inputs))
        if tags := self._facts.new_tags():
            pairs = [{"key": key, "value": storable(value, _LONGEST_TAG)} for key, value in tags.items()]
            self._log_batch("tags", pairs, lambda _: None)
            self._facts.tags_delivered(tags)

    def _log_inputs(self, inputs: Sequence[Input]) -> None:
        body = {"run_id": self._run_id, "datasets": storable_json(list(inputs))}
        answer = self._client.post("runs/log-inputs", json=body)
        if answer.status_code in REFUSED:
            self._check_run()
            logger.warning("MLflow refused the datasets of this job; its run lacks them: %s", answer.text[:300])
            return
        answer.raise_for_status()
