"""What a forked process does before it runs a program: it becomes like a process that Python started anew."""

from __future__ import annotations

import importlib
import io
import os
import resource
import runpy
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO

from syncnorm.trainer.forkserver.forked_process import exit_code, finish, renew_random_numbers

_SET_BY_PYTHON = ("LC_CTYPE",)
"""Variables that Python sets at its start, if the locale is C (PEP 538)."""

THREADS = "threadpoolctl"
"""The module that sets the threads of numpy's library. scikit-learn brings it; without it numpy has one thread."""


def run(asked: Mapping[str, Any], streams: Sequence[int], set_by_imports: Mapping[str, str]) -> NoReturn:
    """Run the program that a launcher asked for, and end this process as Python would have ended it. set_by_imports:
    variables that importing a library sets."""
    code = 1
    try:
        _take_attributes(asked)
        _take_streams(streams)
        _take_environment({**asked["environment"], **set_by_imports})
        _take_signals(asked)
        renew_random_numbers()
        _take_threads(asked["environment"])
        code = exit_code(lambda: _run_main(asked["arguments"], is_module=asked["is_module"]))
        code = exit_code(finish) or code
    finally:
        os._exit(code)  # without tidying up memory that is shared with the parent


def _take_attributes(asked: Mapping[str, Any]) -> None:
    os.chdir(asked["folder"])
    os.umask(asked["umask"])
    os.sched_setaffinity(0, asked["affinity"])
    if os.getpriority(os.PRIO_PROCESS, 0) != asked["nice"]:
        os.setpriority(os.PRIO_PROCESS, 0, asked["nice"])
    for number, (soft, hard) in asked["limits"].items():
        if resource.getrlimit(int(number)) != (soft, hard):
            resource.setrlimit(int(number), (soft, hard))


def _take_streams(streams: Sequence[int]) -> None:
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    for stream in streams:
        os.close(stream)


def _take_environment(environment: Mapping[str, str]) -> None:
    of_python = {name: os.environ[name] for name in _SET_BY_PYTHON if name in os.environ}
    os.environ.clear()
    os.environ.update({**of_python, **environment})
    if environment.get("PYTHONUNBUFFERED"):
        sys.stdout = _unbuffered(sys.stdout, 1)
        sys.stderr = _unbuffered(sys.stderr, 2)


def _unbuffered(stream: TextIO, number: int) -> TextIO:
    raw = io.FileIO(number, "w", closefd=False)
    return io.TextIOWrapper(raw, encoding=stream.encoding, errors=stream.errors, write_through=True)


def _take_signals(asked: Mapping[str, Any]) -> None:
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in asked["ignored"]:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, asked["blocked"])


def _take_threads(environment: Mapping[str, str]) -> None:
    """What OMP_NUM_THREADS tells libraries when they are loaded. The parent has loaded them with one thread."""
    said = environment.get("OMP_NUM_THREADS", "")
    number = int(said) if said.isdigit() and int(said) else len(os.sched_getaffinity(0))
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != number:
        torch.set_num_threads(number)
    control = sys.modules.get(THREADS)
    if control is not None and number > 1:
        control.threadpool_limits(number, user_api="blas")


def _run_main(arguments: Sequence[str], *, is_module: bool) -> None:
    """As `python -m MODULE ARG…` or `python FILE ARG…`."""
    name, *rest = arguments
    sys.path[0] = str(Path.cwd()) if is_module else str(Path(name).parent)
    importlib.invalidate_caches()
    sys.orig_argv[:] = [sys.executable, *(["-m"] if is_module else []), *arguments]
    sys.argv[:] = [name, *rest]
    if is_module:
        sys.modules.pop(name, None)  # the parent has imported it, and it is to run as the main module
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(name, run_name="__main__")
