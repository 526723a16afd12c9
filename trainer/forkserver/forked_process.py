"""What a process does between its fork and the code that it runs: it becomes like one that was started anew."""

from __future__ import annotations

import atexit
import ctypes
import importlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

_PR_SET_PDEATHSIG = 1
_SET_BY_PYTHON = ("LC_CTYPE",)
"""Variables that Python sets at its start, if the locale is C (PEP 538)."""


@dataclass(frozen=True)
class Task:
    """Calls `main(*arguments)` of a module. streams: descriptors of standard input, output and error."""

    module: str
    arguments: Sequence[str]
    environment: Mapping[str, str]
    streams: Sequence[int]


def run(task: Task, parent: int) -> NoReturn:
    """Run the task, and end this process with its exit code. parent: its process id; this process ends with it."""
    code = 1
    try:
        _end_with(parent)
        _begin(task)
        code = exit_code(lambda: importlib.import_module(task.module).main(*task.arguments))
        code = exit_code(finish) or code
    finally:
        os._exit(code)  # without tidying up memory that is shared with the parent


def _end_with(parent: int) -> None:
    os.setsid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the call
        os._exit(1)


def _begin(task: Task) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for number, stream in enumerate(task.streams):
        os.dup2(stream, number)
    for stream in task.streams:
        os.close(stream)
    of_python = {name: os.environ[name] for name in _SET_BY_PYTHON if name in os.environ}
    os.environ.clear()
    os.environ.update({**of_python, **task.environment})
    sys.argv[1:] = task.arguments
    renew_random_numbers()


def renew_random_numbers() -> None:
    """Python seeds its own generator at a fork. Those of numpy and torch would repeat themselves."""
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    if numpy is not None:
        numpy.random.seed()
    if torch is not None:
        torch.default_generator.seed()


def finish() -> None:
    """What Python does at its end, and `os._exit` does not."""
    threading._shutdown()  # type: ignore[attr-defined]  # as multiprocessing ends its processes
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()


def exit_code(call: Callable[[], object]) -> int:
    """As Python would exit after `call`."""
    try:
        call()
    except SystemExit as leaving:
        if isinstance(leaving.code, int | None):
            return leaving.code or 0
        print(leaving.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0
