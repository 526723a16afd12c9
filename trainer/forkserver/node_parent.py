"""The parent of a node's warm processes: `python -m syncnorm.trainer.forkserver.node_parent FOLDER LOCK MODULE…`.

A driver's launcher starts it. It imports what drivers and Ray's workers import, and then forks a process for each
launcher that connects to the socket in FOLDER, which only its own user can open. It runs no program itself, so nothing
gets from one to the next. LOCK is the descriptor of a file that it keeps locked: a node has one parent.

It ends after IDLE_S without a request, once FOLDER has gone, and when the code or the packages have changed.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from syncnorm.trainer.forkserver import guardian, launcher, new_process
from syncnorm.trainer.forkserver.fingerprint import fingerprint
from syncnorm.trainer.forkserver.parent import count_threads

IDLE_S = 1800.0
_LOOK_S = 10.0
"""How often it looks whether FOLDER is still there."""
_REQUEST_S = 2.0
_MOST_BYTES = 2**20
_SET_FOR_IMPORTS = ("OPENBLAS_NUM_THREADS", "JE_ARROW_MALLOC_CONF")
_RAY = "ray._raylet"
_GPUS = "/dev/nvidia"


class NodeParent:
    """Answers launchers, one at a time: a fork takes some milliseconds."""

    def __init__(self, folder: Path, lock: int, idle_s: float = IDLE_S) -> None:
        self._folder = folder
        self._lock = lock
        self._idle_s = idle_s
        self._environment = {name: value for name, value in os.environ.items() if name not in _SET_FOR_IMPORTS}
        self._made_from = fingerprint({})
        self._like = launcher.likeness()
        self._is_outdated = False
        self._set_by_imports: dict[str, str] = {}

    def serve(self) -> None:
        """Until it is no longer needed. Forked processes never return from here."""
        self._like["scheduler"] = os.sched_getscheduler(0)
        self._set_by_imports = {
            name: value
            for name, value in os.environ.items()
            if name not in _SET_FOR_IMPORTS and self._environment.get(name) != value
        }
        address = self._folder / launcher.SOCKET
        address.unlink(missing_ok=True)  # of one that was killed
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(str(address))
            listener.listen(64)
            needed_at = time.monotonic()
            while self._folder.exists() and time.monotonic() - needed_at < self._idle_s and not self._is_outdated:
                if select.select([listener], [], [], _LOOK_S)[0]:
                    with contextlib.suppress(OSError, ValueError, KeyError):  # one launcher that went away
                        self._accept(listener)
                    needed_at = time.monotonic()
            address.unlink(missing_ok=True)

    def _accept(self, listener: socket.socket) -> None:
        lease, _ = listener.accept()
        with lease:
            lease.settimeout(_REQUEST_S)
            data, streams, _, _ = socket.recv_fds(lease, _MOST_BYTES, 3, socket.MSG_CMSG_CLOEXEC)
            try:
                asked = json.loads(data)
                if (why := self._refusal(lease, asked)) is not None:
                    print(f"refused {asked['arguments'][:2]}: {why}", file=sys.stderr, flush=True)
                    lease.send(json.dumps({"refused": why}).encode())
                elif os.fork() == 0:
                    self._run(listener, lease, asked, streams)
            finally:
                for stream in streams:
                    os.close(stream)

    def _run(self, listener: socket.socket, lease: socket.socket, asked: Mapping[str, Any], streams: list[int]) -> None:
        try:
            listener.close()
            os.close(self._lock)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            guardian.guard(
                lease, lambda: new_process.run(asked, streams, self._set_by_imports), adopts=asked["is_module"]
            )
        finally:
            os._exit(1)

    def _refusal(self, lease: socket.socket, asked: Mapping[str, Any]) -> str | None:
        """Why a forked process would differ from one that starts anew; None if it would not."""
        if launcher.owner(lease) != os.getuid():
            return "another user asks"
        if fingerprint({}) != self._made_from:
            self._is_outdated = True
            return "code or packages have changed since the parent was started"
        if (threads := count_threads()) > 1:
            return f"the parent has {threads} threads, and only one would survive a fork"
        if unlike := _differences(json.loads(json.dumps(self._like)), asked["like"]):
            return f"the parent has another {', '.join(unlike)}"
        # One that is forked for a warm process has what the imports of that one have set.
        given = {name: value for name, value in asked["environment"].items() if self._set_by_imports.get(name) != value}
        names = [name for name in _differences(self._environment, given) if not launcher.may_differ(name)]
        if names:
            return f"the parent has other variables: {', '.join(names)}"
        return None


def _differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    return sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))


def _prepare(modules: Sequence[str]) -> None:
    """Import everything, and make sure that a fork is safe. Raises: RuntimeError."""
    for module in modules:
        importlib.import_module(module)
    if _RAY in sys.modules:
        raise RuntimeError("the imports loaded Ray, which has read the variables of this process")
    before = dict(os.environ)
    with contextlib.suppress(ImportError):
        importlib.import_module(new_process.THREADS)
    for name in os.environ.keys() - before.keys():  # it lets several OpenMP runtimes pass
        del os.environ[name]
    gc.collect()
    gc.freeze()  # else the first collection of a forked process would copy all of it
    if (threads := count_threads()) > 1:
        raise RuntimeError(f"the imports started {threads - 1} threads, which would not survive a fork")
    opened = [path.resolve() for path in Path("/proc/self/fd").iterdir()]
    if any(str(path).startswith(_GPUS) for path in opened):
        raise RuntimeError("the imports opened a GPU, which a forked process could not use")


def main(folder: str, lock: str, *modules: str) -> None:
    os.set_inheritable(int(lock), False)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # guardians end by themselves
    parent = NodeParent(Path(folder), int(lock))
    _prepare(modules)
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    parent.serve()


if __name__ == "__main__":
    main(*sys.argv[1:])
