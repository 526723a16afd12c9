"""The parent: imports modules, then forks a process for each task.

`python -m syncnorm.trainer.forkserver.parent FD IDLE_S MODULE…`. FD is one end of `wire.pair()`. A message there is a
task. With it come one end of a pair of its own, the lease, and the streams of the new process. The lease carries the
process id and then the exit code, and once its other end is closed, the process is killed.

The parent itself runs no task, so no state gets from one to the next. It has one thread: others don't survive a fork.
It ends when FD closes or nothing was asked for IDLE_S seconds, and once the processes it forked are over.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import os
import select
import signal
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from syncnorm.trainer.forkserver import forked_process, wire
from syncnorm.trainer.forkserver.forked_process import Task

_PR_SET_CHILD_SUBREAPER = 36
_TASKS = "/proc/self/task"


@dataclass
class _Child:
    pid: int
    ended: int
    """Its pidfd, readable once it has ended."""
    lease: socket.socket


class Parent:
    """Forks processes on request, and ends them with all that they left."""

    def __init__(self, control: socket.socket, idle_s: float) -> None:
        self._control: socket.socket | None = control
        self._idle_s = idle_s
        self._children: list[_Child] = []

    def serve(self) -> Task | None:
        """In the parent: None, once it is to end. In a forked process: its task."""
        try:
            while self._control is not None or self._children:
                task = self._attend(self._ready())
                if task is not None:
                    return task
            return None
        finally:
            for child in self._children:  # none in a forked process
                self._kill(child)
            _end_orphans()

    def _ready(self) -> set[int]:
        """The descriptors at which something has happened; none after a time without any request."""
        poll = select.poll()
        for descriptor in self._descriptors():
            poll.register(descriptor, select.POLLIN)
        return {descriptor for descriptor, _ in poll.poll(None if self._children else self._idle_s * 1000)}

    def _descriptors(self) -> Iterator[int]:
        if self._control is not None:
            yield self._control.fileno()
        for child in self._children:
            yield child.ended
            if child.lease.fileno() >= 0:
                yield child.lease.fileno()

    def _attend(self, ready: set[int]) -> Task | None:
        for child in list(self._children):
            if child.ended in ready:
                self._reap(child)
            elif child.lease.fileno() in ready:  # its client has gone
                self._kill(child)
        if not ready:
            self._close()
        elif self._control is not None and self._control.fileno() in ready:
            return self._accept(self._control)
        return None

    def _accept(self, control: socket.socket) -> Task | None:
        message, descriptors = wire.receive(control)
        if message is None:
            self._close()
            return None
        lease = socket.socket(fileno=descriptors[0])
        task = Task(message["module"], message["arguments"], message["environment"], descriptors[1:])
        if (threads := count_threads()) > 1:
            _tell(lease, refused=f"the parent has {threads} threads, and only one would survive a fork")
            lease.close()
        elif (pid := os.fork()) == 0:
            self._leave(lease)
            return task
        else:
            self._children.append(_Child(pid, os.pidfd_open(pid), lease))
            _tell(lease, pid=pid)
        for stream in task.streams:
            os.close(stream)
        return None

    def _leave(self, lease: socket.socket) -> None:
        """In a forked process: close what only the parent needs."""
        self._close()
        lease.close()
        for child in self._children:
            child.lease.close()
            os.close(child.ended)
        self._children = []

    def _close(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None

    def _kill(self, child: _Child) -> None:
        child.lease.close()
        os.kill(child.pid, signal.SIGKILL)  # it is not reaped yet, so nobody else has its id
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)

    def _reap(self, child: _Child) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # whatever it started
        _, status = os.waitpid(child.pid, 0)
        os.close(child.ended)
        self._children.remove(child)
        if not self._children:
            _end_orphans()
        if child.lease.fileno() >= 0:
            _tell(child.lease, code=os.waitstatus_to_exitcode(status))
            child.lease.close()


def count_threads() -> int:
    """Threads of this process, also those that Python doesn't know."""
    return len(list(Path(_TASKS).iterdir()))


def _tell(lease: socket.socket, **message: object) -> None:
    with contextlib.suppress(OSError):  # its client has gone
        wire.send(lease, message)


def _end_orphans() -> None:
    """Kill and reap what ended processes left running, whatever session it moved to; it is ours by now."""
    with contextlib.suppress(FileNotFoundError):  # a kernel without this list
        while pids := Path(f"{_TASKS}/{os.getpid()}/children").read_text().split():
            for pid in map(int, pids):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def main(descriptor: str, idle_s: str, *modules: str) -> None:
    control = socket.socket(fileno=int(descriptor))
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for module in modules:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # else the first collection of a forked process would copy all of it
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    wire.send(control, {"threads": count_threads()})
    parent = os.getpid()
    task = Parent(control, float(idle_s)).serve()
    if task is not None:
        forked_process.run(task, parent)


if __name__ == "__main__":
    main(*sys.argv[1:])
