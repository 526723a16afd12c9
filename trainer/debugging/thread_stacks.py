"""What each thread of this process is doing now, as its Python stack."""

from __future__ import annotations

import sys
import threading
import traceback
from types import FrameType

from syncnorm.trainer.contract.protocol import MOST_THREADS, ThreadStack
from syncnorm.trainer.contract.text import counted

MOST_FRAMES = 80
"""Of a thread, the innermost: they say what it waits for."""


def thread_stacks(first: int, without: frozenset[int] = frozenset()) -> list[ThreadStack]:
    """The stacks of all threads: that of `first`, the one that trains, then the main thread's, then the others.

    first, without: identifiers of threads (threading.get_ident()); those in `without` are left out. Costs the process
    some milliseconds, and no thread is stopped: a stack is a moment of its own.
    """
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    order = {first: 0, threading.main_thread().ident: 1}
    found = sorted(sys._current_frames().items(), key=lambda one: order.get(one[0], 2))
    shown = [(ident, frame) for ident, frame in found if ident not in without][:MOST_THREADS]
    return [ThreadStack(name=names.get(ident, f"thread {ident}"), stack=_text(frame)) for ident, frame in shown]


def _text(frame: FrameType) -> str:
    """As in a traceback, most recent call last, with lines of code but no values."""
    frames = list(traceback.walk_stack(frame))[::-1]
    left_out = len(frames) - MOST_FRAMES
    head = f"  [{counted(left_out, 'outer frame')} left out]\n" if left_out > 0 else ""
    summary = traceback.StackSummary.extract(iter(frames[-MOST_FRAMES:]))
    return head + "".join(summary.format()).rstrip()
