"""Runs the forwards of several micro-batches in turns, one thread each and one at a time, until all of them meet.

A forward runs until it comes to a meeting, then the next one does. When all have come to the same meeting, the calling
thread combines what they brought, and each gets its answer at its next turn. So nobody ever waits for a thread that
waits: the calling thread waits for the one whose turn it is, which meets, ends or fails.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

import torch

from syncnorm.norm.lockstep.random_streams import RandomStreams
from syncnorm.norm.lockstep.thread_state import ThreadState
from syncnorm.norm.lockstep.threads import Worker, idle_worker
from syncnorm.norm.torch_compat import advance_sequence_number, sequence_number

T = TypeVar("T")
Combine = Callable[[list[Any]], Sequence[Any]]
"""What all micro-batches brought to a meeting, in their order -> the answer for each."""


@dataclass(frozen=True, eq=False)
class _Meeting:
    place: object
    name: str
    brought: Any
    combine: Combine


class _LeftError(BaseException):
    """Ends a forward whose step has failed. No `except Exception` of a model may hold it up."""


_local = threading.local()


def is_in_lockstep() -> bool:
    """Whether this thread runs a forward of `run_in_turns`."""
    return getattr(_local, "turns", None) is not None or getattr(_local, "is_single", False)


def meet(place: object, name: str, brought: Any, combine: Combine) -> Any:
    """What `combine` answers for `brought`, once every micro-batch has come to `place`; at once if there is one.

    place: the same object for all of them. name: what to call it in an error.
    """
    turns: _Turns[Any] | None = getattr(_local, "turns", None)
    if turns is None:
        return combine([brought])[0]
    return turns.wait(_Meeting(place, name, brought, combine))


def run_in_turns(functions: Sequence[Callable[[], T]], noun: str = "micro-batch") -> list[T]:
    """The results of `functions`, which meet on their way; see `meet`. Deterministic: turns are taken in their order.

    Each has random numbers of its own, so that dropout differs between micro-batches, and the settings of this thread:
    gradients, autocast, device and hooks on saved tensors. If one fails the others are ended and its error is raised.
    noun: what to call the input of one of them in an error.

    Raises: ValueError if they don't pass through the same meetings.
    """
    if len(functions) == 1:
        return [_run_one(functions[0])]
    threads = [_Turns(number, function) for number, function in enumerate(functions)]
    if torch.is_grad_enabled():
        _align([thread.worker for thread in threads])
    streams = RandomStreams(len(threads))
    answers: Sequence[Any] = [None] * len(threads)
    try:
        while True:
            for thread, answer in zip(threads, answers, strict=True):
                streams.switch_to(thread.number)
                thread.take_turn(answer)
            streams.switch_to(None)
            meetings = [thread.meeting for thread in threads]
            if all(meeting is None for meeting in meetings):
                return [thread.result for thread in threads]
            answers = _combined(meetings, noun)
            del meetings
    finally:
        for thread in threads:
            thread.end()
        streams.close()


def _align(workers: Sequence[Worker]) -> None:
    """Let all threads number the nodes of the graph from one number on. The order of the backward pass, and with it how
    sums of gradients are rounded, then depends on the forwards alone, not on what the threads have done before."""
    number = max(sequence_number(), *(worker.sequence_number for worker in workers))
    advance_sequence_number(number)
    for worker in workers:
        worker.sequence_number = number


def _run_one(function: Callable[[], T]) -> T:
    _local.is_single = True
    try:
        return function()
    finally:
        _local.is_single = False


def _combined(meetings: Sequence[_Meeting | None], noun: str) -> Sequence[Any]:
    first = meetings[0]
    if first is None or any(other is None or other.place is not first.place for other in meetings):
        where = "; ".join(
            f"{noun} {number} is {f'in {meeting.name}' if meeting else 'at its end'}"
            for number, meeting in enumerate(meetings)
        )
        raise ValueError(
            f"all {noun}{'es' if noun.endswith('h') else 's'} must pass through the same normalization layers in the "
            f"same order: {where}. Give inputs that take the same path, or choose a kind whose statistics don't depend "
            "on what else there is for the layers in question."
        )
    return first.combine([meeting.brought for meeting in meetings if meeting is not None])


class _Turns(Generic[T]):
    """One forward, in a thread of its own that runs only when it is its turn."""

    def __init__(self, number: int, function: Callable[[], T]) -> None:
        self.number = number
        self.meeting: _Meeting | None = None
        self.result: Any = None
        self._function, self._state = function, ThreadState()
        self._error: BaseException | None = None
        self._is_over = self._is_left = False
        self._answers: SimpleQueue[Any] = SimpleQueue()
        self._stops: SimpleQueue[None] = SimpleQueue()
        self.worker = idle_worker()
        self.worker.run(self._run)

    def take_turn(self, answer: Any) -> None:
        """Run on with `answer` to the next meeting or the end, unless it is there. Raises what the forward raises."""
        if self._is_over:
            return
        self.meeting = None
        self._answers.put(answer)
        del answer
        self._stops.get()
        if self._error is not None:
            raise self._error

    def end(self) -> None:
        """Let the forward end, wherever it is."""
        self._is_left = True
        self._answers.put(None)
        while not self._is_over:
            self._stops.get()
        self.meeting = self._error = None

    def wait(self, meeting: _Meeting) -> Any:
        """Called by the forward."""
        if self._is_left:
            raise _LeftError
        self.meeting = meeting
        del meeting
        self._stops.put(None)
        answer = self._answers.get()
        if self._is_left:
            raise _LeftError
        return answer

    def _counted(self) -> T:
        if not torch.is_grad_enabled():
            return self._function()
        advance_sequence_number(self.worker.sequence_number)
        try:
            return self._function()
        finally:
            with torch.enable_grad():
                self.worker.sequence_number = sequence_number() + 1

    def _run(self) -> None:
        self._answers.get()
        try:
            if not self._is_left:
                _local.turns = self
                self.result = self._state.run(self._counted)
        except _LeftError:
            pass
        except BaseException as error:  # raised again by the thread that waits
            self._error = error
        finally:
            _local.turns = None
            del self._function, self._state
            self._is_over = True
            self._stops.put(None)
