"""The stack of each thread, the one that trains first."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from syncnorm.trainer.contract.protocol import MOST_THREADS
from syncnorm.trainer.debugging.thread_stacks import MOST_FRAMES, thread_stacks


@contextmanager
def waiting(name: str, depth: int = 0) -> Iterator[int]:
    """The identifier of a thread that waits `depth` calls deep in a function of its own."""
    deep, leave = threading.Event(), threading.Event()

    def waits_here() -> None:
        deep.set()
        leave.wait()

    def descend(left: int) -> None:
        descend(left - 1) if left else waits_here()

    thread = threading.Thread(target=descend, args=(depth,), name=name)
    thread.start()
    deep.wait()
    assert thread.ident is not None
    try:
        yield thread.ident
    finally:
        leave.set()
        thread.join()


def test_the_thread_that_trains_comes_first_then_the_main_one() -> None:
    with waiting("beside"), waiting("training") as trains:
        found = thread_stacks(trains)

    assert [one.name for one in found[:2]] == ["training", "MainThread"]
    assert "beside" in {one.name for one in found}
    assert "in waits_here\n    leave.wait()" in found[0].stack
    assert "thread_stacks(trains)" in found[1].stack


def test_a_thread_can_be_left_out() -> None:
    with waiting("watcher") as left_out:
        names = {one.name for one in thread_stacks(threading.get_ident(), without=frozenset({left_out}))}

    assert "watcher" not in names


def test_of_a_deep_stack_the_innermost_frames_are_kept() -> None:
    with waiting("deep", depth=500) as trains:
        stack = thread_stacks(trains)[0].stack

    assert stack.count('  File "') == MOST_FRAMES or "[Previous line repeated" in stack
    assert "outer frames left out]" in stack.splitlines()[0]
    assert "in waits_here" in stack


def test_of_many_threads_the_first_are_kept() -> None:
    with ExitStack() as stack:
        for number in range(MOST_THREADS):
            stack.enter_context(waiting(f"thread {number}"))
        trains = stack.enter_context(waiting("training"))
        found = thread_stacks(trains)

    assert len(found) == MOST_THREADS
    assert found[0].name == "training"
