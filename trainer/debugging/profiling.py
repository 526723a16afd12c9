"""Profiles some steps of a running job when somebody asks: recorded by the thread that trains, at bounds of steps."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from syncnorm.trainer.callbacks.checkpoint import between_steps
from syncnorm.trainer.callbacks.max_steps import ends_epoch
from syncnorm.trainer.contract.profile import ProfileRequest
from syncnorm.trainer.contract.text import counted, text_of
from syncnorm.trainer.debugging.profile_delivery import ProfileDelivery
from syncnorm.trainer.debugging.profiler_session import ProfilerSession
from syncnorm.trainer.training.late_hooks import LateCallback
from syncnorm.trainer.training.task_module import network_of

logger = logging.getLogger(__name__)

MOST_EVENTS = 150_000
"""In one trace: some 30 MB of JSON, which the viewers open at once."""


class Profiling(LateCallback):
    """Costs two reads of an attribute a batch while nobody asks.

    The first step is recorded to count its events, and forgotten: this says how many steps one trace may hold, and
    starts up what the profiler needs. The recording ends at the latest with the epoch, so that validation is not in it.
    Comes before the callback that measures exchanges, so that starting the profiler is not in its batches.
    """

    def __init__(
        self, delivery: ProfileDelivery, *, is_compiled: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """is_compiled: whether the network is, so that its layers can't be told apart."""
        self._delivery = delivery
        self._is_compiled = is_compiled
        self._notes = [_COMPILED] if is_compiled else []
        self._clock = clock
        self._asked: ProfileRequest | None = None
        self._active: _Active | None = None

    def request(self, request: ProfileRequest) -> None:
        """Called by the thread that listens to the service."""
        if self._asked is not None or self._active is not None or self._delivery.is_busy:
            self._delivery.refuse(request, "Another profile of this rank is not finished yet.")
        else:
            self._asked = request

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._active is None and self._asked is not None:
            self._active, self._asked = _Active(self._asked), None
        if self._active is not None:
            self._guarded(lambda active: self._begin_step(active, trainer, pl_module))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._active is not None and self._active.session is not None:
            self._active.session.end_step()

    def after_train_batch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._active is not None:
            self._guarded(lambda active: self._end_step(active, trainer))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._give_up("Training was stopped before the profile was complete.")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._give_up("Training ended before the profile could begin.")

    def close(self, timeout_s: float) -> None:
        """Answer what is still open, and wait for the last profile."""
        self._give_up("Training is over.")
        self._delivery.close(timeout_s)

    def _begin_step(self, active: _Active, trainer: Trainer, module: LightningModule) -> None:
        if active.session is None:
            if active.is_amid_step:
                return
            active.session = ProfilerSession(
                None if self._is_compiled else network_of(module),
                on_device=module.device.type == "cuda",
                first_step=trainer.global_step,
            )
            active.ends_at = self._clock() + active.request.seconds
        active.session.begin_step()

    def _end_step(self, active: _Active, trainer: Trainer) -> None:
        active.is_amid_step = not between_steps(trainer)
        if active.session is None or active.is_amid_step:
            return
        if active.most_steps is None:
            self._count_events(active)
            return
        steps, is_last = active.session.steps, ends_epoch(trainer)
        if steps < active.most_steps and self._clock() < active.ends_at and not is_last:
            return
        notes = list(self._notes)
        if steps >= active.most_steps and steps != active.request.steps:
            notes.append(f"Ended after {counted(steps, 'step')}: a trace holds {MOST_EVENTS:,} events.")
        elif is_last and self._clock() < active.ends_at:
            notes.append(f"Ended after {counted(steps, 'step')}, with the epoch.")
        recording, self._active = active.session.stop(), None
        self._delivery.deliver(active.request, recording, notes)

    def _count_events(self, active: _Active) -> None:
        """After the first step, which was for this alone."""
        assert active.session is not None
        recording, active.session = active.session.stop(), None
        possible = max(1, MOST_EVENTS * recording.steps // max(1, recording.count_events()))
        active.most_steps = min(possible, active.request.steps or possible)

    def _guarded(self, work: Callable[[_Active], None]) -> None:
        active = self._active
        assert active is not None
        try:
            work(active)
        except Exception as error:  # of whatever kind: looking into a job must never harm it
            logger.warning("the profile failed, and training continues: %s: %s", type(error).__name__, error)
            self._give_up(f"The profile failed, and training continues: {text_of(error)}.")

    def _give_up(self, why: str) -> None:
        active, self._active = self._active, None
        asked, self._asked = self._asked, None
        if active is not None and active.session is not None:
            with suppress(Exception):
                active.session.stop()
        for request in (active.request if active else None, asked):
            if request is not None:
                self._delivery.refuse(request, why)


class _Active:
    """The request that is being carried out. most_steps: None until the first step was counted."""

    def __init__(self, request: ProfileRequest) -> None:
        self.request = request
        self.session: ProfilerSession | None = None
        self.most_steps: int | None = None
        self.ends_at = 0.0
        self.is_amid_step = True  # unless the end of a batch shows otherwise


_COMPILED = "The network is compiled (train.compile), so its layers can't be told apart."
