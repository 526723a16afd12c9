"""Runs one program and makes sure that none of its processes outlives the service that started it.

`python -m syncnorm.service.local.supervisor RECORD LOG COMMAND…`, with a pipe as standard input. It adopts every orphan
among the program's descendants (Linux: child subreaper), and ends them all when the pipe closes, for whatever reason: a
clean stop, a crash or kill -9 of the parent. RECORD lists pids with their start times, for `sweep` after the supervisor
itself was killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

_PR_SET_CHILD_SUBREAPER = 36
_POLL_S = 2.0
"""Between two looks at the descendants, each of which reads every process of the host."""
_TERM_GRACE_S = 3.0


def keep(record: Path, log: Path, command: list[str]) -> int:
    """Run the command until it ends or standard input closes; its exit code."""
    _adopt_orphans()
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # Ctrl-C in the terminal is for the parent, which closes the pipe
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        ).pid
    code, ended = None, _end_of(child)
    try:
        while code is None and sys.stdin not in select.select([sys.stdin, *ended], [], [], _POLL_S)[0]:
            code = _reap(child)
            _write_record(record)
    finally:
        _end_descendants()
        record.unlink(missing_ok=True)
    return 0 if code is None else code


def _end_of(child: int) -> list[int]:
    """A descriptor that can be read once the child has ended, where the operating system has such descriptors."""
    return [os.pidfd_open(child)] if hasattr(os, "pidfd_open") else []


def sweep(record: Path) -> None:
    """End processes that an earlier supervisor left behind. A pid counts only together with its start time."""
    try:
        left = json.loads(record.read_text())
    except (OSError, ValueError):
        return
    for pid, started in left:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            if abs(process.create_time() - started) < 0.01:
                process.kill()
    record.unlink(missing_ok=True)


def _adopt_orphans() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _reap(child: int) -> int | None:
    """Reap everything that has ended; the exit code of the program itself, once it has one."""
    code = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return 0 if code is None else code
        if pid == 0:
            return code
        if pid == child:
            code = os.waitstatus_to_exitcode(status)


def _write_record(record: Path) -> None:
    entries = [(os.getpid(), psutil.Process().create_time())]
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            entries.append((process.pid, process.create_time()))
    partial = record.with_suffix(".new")
    partial.write_text(json.dumps(entries))
    partial.replace(record)


def _end_descendants() -> None:
    """SIGTERM, a grace period, then SIGKILL until no process is left: killing a parent may reveal new orphans."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            process.terminate()
    deadline = time.monotonic() + _TERM_GRACE_S
    while _living() and time.monotonic() < deadline:
        time.sleep(0.05)
    while living := _living():
        for process in living:
            with contextlib.suppress(psutil.Error):
                process.kill()
        time.sleep(0.05)


def _living() -> list[psutil.Process]:
    _reap(-1)
    return list(psutil.Process().children(recursive=True))


if __name__ == "__main__":
    sys.exit(keep(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]))
