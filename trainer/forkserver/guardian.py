"""The process between the parent and a program: starts it once its launcher agrees, and ends it with its launcher.

It lives as long as the program, so the parent may end or crash meanwhile. It forwards the launcher's signals, and tells
it the exit code. If it is killed itself, the kernel kills the program.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_AGREE_S = 30.0
_MOST_BYTES = 2**16


def guard(lease: socket.socket, program: Callable[[], NoReturn], *, adopts: bool) -> NoReturn:
    """Run `program` in a fork of this process. adopts: end with it whatever it left running, in any session."""
    os.setsid()
    for number in _IGNORED:  # who ends all processes of a node gives the program time to end by itself
        signal.signal(number, signal.SIG_IGN)
    if adopts:
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    lease.settimeout(_AGREE_S)
    lease.send(json.dumps({"ready": os.getpid()}).encode())
    if not lease.recv(_MOST_BYTES):  # the launcher gave up, and has started the program anew
        os._exit(1)
    lease.settimeout(None)
    me = os.getpid()
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # one that comes now waits until it is prepared
    if (pid := os.fork()) == 0:
        lease.close()
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != me:
            os._exit(1)
        os.setsid()
        program()
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    code = _wait(pid, lease)
    _end_orphans()
    with contextlib.suppress(OSError):  # the launcher was killed
        lease.send(json.dumps({"code": code}).encode())
    os._exit(0)


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def _wait(pid: int, lease: socket.socket) -> int:
    """Until the program has ended; its exit code. It is killed when the launcher has gone."""
    ended = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(ended, select.POLLIN)
    poll.register(lease, select.POLLIN)
    while True:
        ready = {descriptor for descriptor, _ in poll.poll()}
        if ended in ready:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)  # whatever it started; it is not reaped yet, so the id is its own
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        message = _message(lease)
        if message is None:
            poll.unregister(lease)
            os.kill(pid, signal.SIGKILL)
        else:
            os.kill(pid, message["signal"])


def _message(lease: socket.socket) -> dict[str, int] | None:
    with contextlib.suppress(OSError):
        if data := lease.recv(_MOST_BYTES):
            message: dict[str, int] = json.loads(data)
            return message
    return None


def _end_orphans() -> None:
    """Kill and reap the children that this process has adopted, until there are none."""
    children = f"/proc/self/task/{os.getpid()}/children"
    with contextlib.suppress(FileNotFoundError):  # a kernel without this list
        while pids := Path(children).read_text().split():
            for pid in map(int, pids):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
