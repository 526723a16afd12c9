"""Starts a program in a warm process, and stands for it: `python -m syncnorm.trainer.forkserver.launcher MODULE ARG…`.

The node's parent (`node_parent`) forks the process. This one hands it its own environment, folder, streams and limits,
forwards signals to it, and ends as it ended. If this one is killed, the other is killed, too. Without a parent that
fits, the program starts anew in place of this process, and a parent is started for the next one.

It runs before each process of a job, so it imports little.
"""

# pathlib would take longer to import than all the rest.
# ruff: noqa: PTH109, PTH115, PTH116, PTH123

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

LAUNCHER = "syncnorm.trainer.forkserver.launcher"
"""This module."""
FOLDER = "SYNCNORM_WARM_FOLDER"
"""The variable that names the private folder with a node's socket. Without it every process starts anew."""
SWITCH = "SYNCNORM_WARM"
"""The variable that a submission of ours sets to 1, so that other users of a cluster have Ray's own processes."""
NODE_PARENT = "syncnorm.trainer.forkserver.node_parent"
"""The module of a node's parent."""
SOCKET, LOCK, LOG = "socket", "lock", "parent.log"
OF_ONE_PROCESS = frozenset(
    {
        *("PWD", "OLDPWD", "SHLVL", "_", "PYTHONBREAKPOINT", "PYTHONUNBUFFERED", "OMP_NUM_THREADS"),
        *("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "SPT_NOENV", SWITCH),
    }
)
"""Variables that may differ from the parent's, besides Ray's: they take effect after the imports, or after the fork."""
MODULES = (
    "syncnorm.trainer.worker.worker",
    "syncnorm.trainer.driver.reexport",
    *("pandas", "pyarrow.dataset", "pyarrow.fs", "aiohttp", "jsonschema", "google.protobuf.json_format"),
    "syncnorm.trainer.forkserver.export_rehearsal",
)
"""What a parent imports: our ranks with all they need, what Ray needs, and what the export of a trained model does, if
that starts no thread. None of it is a user's. None is Ray: its library reads the variables of its process once, when
it is loaded (ray 2.60)."""
ANSWER_S = 10.0
"""A parent that has not answered by then hangs, or its host is overloaded: the process starts anew."""
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT)
_MOST_BYTES = 2**20


def may_differ(name: str) -> bool:
    """Whether a process may have another value of this variable than its parent."""
    return name in OF_ONE_PROCESS or name.startswith("RAY_")


def program(arguments: Sequence[str], environment: Mapping[str, str], *, is_module: bool) -> dict[str, Any]:
    """What the parent has to know: the program, and everything that a new process would get from this one."""
    umask = os.umask(0)
    os.umask(umask)
    return {
        "arguments": list(arguments),
        "is_module": is_module,
        "environment": dict(environment),
        "folder": os.getcwd(),
        "umask": umask,
        "nice": os.getpriority(os.PRIO_PROCESS, 0),
        "affinity": sorted(os.sched_getaffinity(0)),
        "limits": {str(number): resource.getrlimit(number) for number in limits()},
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
        "ignored": ignored(),
        "like": likeness(),
    }


def limits() -> list[int]:
    return sorted({getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")})


def ignored() -> list[int]:
    """Signals that this process ignores since before it began."""
    numbers = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
    return [number for number in numbers if signal.getsignal(number) == signal.SIG_IGN]


def likeness() -> dict[str, Any]:
    """What must be equal in a parent and in a process that it forks for this one, because a fork can't change it."""
    flags = {name: getattr(sys.flags, name) for name in dir(sys.flags) if name[0] != "_"}
    return {
        "executable": sys.executable,
        "version": sys.version,
        "flags": {name: value for name, value in flags.items() if isinstance(value, int) and name != "unbuffered"},
        "groups": [os.getresuid(), os.getresgid(), sorted(os.getgroups())],
        "cgroup": _text("/proc/self/cgroup"),
        "namespaces": [os.readlink(f"/proc/self/ns/{name}") for name in ("ipc", "mnt", "net", "pid", "user", "uts")],
        "root": os.stat("/").st_ino,
        "scheduler": os.sched_getscheduler(0),
    }


def _text(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def is_wanted(environment: Mapping[str, str]) -> bool:
    """Whether a process with these variables may be a warm one."""
    return environment.get(SWITCH) == "1" and bool(environment.get(FOLDER)) and sys.platform == "linux"


def launch(asked: Mapping[str, Any]) -> str:
    """Run a program in a warm process, and end as it ends. Returns only if it has to start anew: why."""
    try:
        lease = _connect(f"{asked['environment'][FOLDER]}/{SOCKET}")
        with lease:
            begun = _ask(lease, asked)
            if "refused" in begun:
                return str(begun["refused"])
            _stand(lease)
    except TimeoutError:
        _kill_parent(asked["environment"][FOLDER])
        return f"the parent hung for {ANSWER_S:g} s"
    except OSError as error:
        return f"no parent: {error}"


def _connect(address: str) -> socket.socket:
    """Raises: OSError, also if the other side is not ours."""
    lease = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    lease.settimeout(ANSWER_S)
    lease.connect(address)
    if owner(lease) != os.getuid():
        lease.close()
        raise PermissionError("the socket of the parent belongs to another user")
    return lease


def owner(channel: socket.socket) -> int:
    """The user of the process at the other end."""
    credentials = channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int.from_bytes(credentials[4:8], sys.byteorder)


def _ask(lease: socket.socket, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The answer: ready, or refused. Nothing has been run by then."""
    socket.send_fds(lease, [json.dumps(asked).encode()], [0, 1, 2])
    data = lease.recv(_MOST_BYTES)
    if not data:
        raise ConnectionResetError("it ended")
    answer: dict[str, Any] = json.loads(data)
    return answer


def _stand(lease: socket.socket) -> NoReturn:
    """From here on the program runs, and nothing starts it again."""
    reading, waking = socket.socketpair()
    for channel in (reading, waking):
        channel.setblocking(False)
    signal.set_wakeup_fd(waking.fileno(), warn_on_full_buffer=False)
    for number in _FORWARDED:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    lease.settimeout(None)
    code = 1
    try:
        lease.send(json.dumps({"go": True}).encode())
        code = _watch(lease, reading)
    except OSError:
        code = -signal.SIGKILL  # its guardian was killed, and it with it
    finally:
        _end_as(code)


def _watch(lease: socket.socket, signals: socket.socket) -> int:
    """Forward signals until the program has ended; its exit code, negative for a signal."""
    import select

    poll = select.poll()
    poll.register(lease, select.POLLIN)
    poll.register(signals, select.POLLIN)
    while True:
        ready = {descriptor for descriptor, _ in poll.poll()}
        if signals.fileno() in ready:
            for number in signals.recv(64):
                lease.send(json.dumps({"signal": number}).encode())
        if lease.fileno() in ready:
            data = lease.recv(_MOST_BYTES)
            return int(json.loads(data)["code"]) if data else -signal.SIGKILL


def _end_as(code: int) -> NoReturn:
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # it has written its own core, if any
        if -code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
        code = 128 - code
    os._exit(code)


def start_parent(folder: str, modules: Sequence[str] = MODULES) -> None:
    """Start the node's parent for the next process, unless there is one, and hurry one that is not ready yet."""
    with contextlib.suppress(OSError, ValueError), _locked(folder) as (lock, parent):
        if parent is not None:  # one job has waited for it in vain, the next is not to
            os.sched_setscheduler(parent, os.SCHED_OTHER, os.sched_param(0))
        elif (pid := os.fork()) == 0:
            _become_parent(folder, lock, modules)
        else:
            os.waitpid(pid, 0)


def _kill_parent(folder: str) -> None:
    """Its forked processes live on."""
    with contextlib.suppress(OSError, ValueError), _locked(folder) as (_, parent):
        if parent is not None:
            os.kill(parent, signal.SIGKILL)


@contextlib.contextmanager
def _locked(folder: str) -> Iterator[tuple[int, int | None]]:
    """The lock, and the parent that holds it; None: this process does now. Raises: OSError, ValueError."""
    import fcntl

    lock = os.open(f"{folder}/{LOCK}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        parent = None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            parent = int(os.pread(lock, 20, 0))
        yield lock, parent
    finally:
        os.close(lock)


def _become_parent(folder: str, lock: int, modules: Sequence[str]) -> NoReturn:
    """In a child: exec the parent in a session of its own, at idle priority, so that it slows nobody down."""
    try:
        os.setsid()
        if os.fork() != 0:
            os._exit(0)
        log = os.open(f"{folder}/{LOG}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        nothing = os.open(os.devnull, os.O_RDWR)
        for number, stream in enumerate((nothing, log, log)):
            os.dup2(stream, number)
        kept = lock if lock > 2 else os.dup(lock)
        os.set_inheritable(kept, True)
        os.closerange(3, kept)
        os.closerange(kept + 1, 65536)
        os.ftruncate(kept, 0)
        os.pwrite(kept, str(os.getpid()).encode(), 0)
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        environment = {name: value for name, value in os.environ.items() if not may_differ(name)}
        arguments = [sys.executable, "-m", NODE_PARENT, folder, str(kept), *modules]
        os.chdir(folder)
        os.execve(sys.executable, arguments, {**environment, **_ONE_THREAD})
    finally:
        os._exit(1)


def main() -> NoReturn:
    """As `python -m MODULE ARG…`."""
    module, *arguments = sys.argv[1:]
    if is_wanted(os.environ):
        why = launch(program([module, *arguments], os.environ, is_module=True))
        print(f"this process starts anew: {why}", file=sys.stderr, flush=True)
        start_parent(os.environ[FOLDER])
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])


if __name__ == "__main__":
    main()
