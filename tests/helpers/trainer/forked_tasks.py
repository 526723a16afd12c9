"""Tasks for warm processes, and what a process shows of itself. Imports little, so that their parent starts quickly."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path


def main(what: str, *arguments: str) -> None:
    {"show": show, "spoil": spoil, "sleep": sleep, "echo": echo, "exit": leave, "die": die, "draw": draw}[what](
        *arguments
    )


def show() -> None:
    """Everything that a task before this one might have changed."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    shown = {
        "environment": dict(os.environ),
        "path": sys.path,
        "arguments": sys.argv[1:],
        "folder": str(Path.cwd()),
        "umask": status["Umask"].strip(),
        "signals": {name: status[name].strip() for name in ("SigIgn", "SigCgt", "SigBlk")},
        "threads": status["Threads"].strip(),
        "nice": os.nice(0),
        "limits": [resource.getrlimit(getattr(resource, name)) for name in ("RLIMIT_NOFILE", "RLIMIT_CORE")],
        "descriptors": [number for number in range(64) if Path(f"/proc/self/fd/{number}").exists()],
        "recursion": sys.getrecursionlimit(),
        "module": getattr(json, "spoiled", None),
        "hook": sys.excepthook is sys.__excepthook__,
        "streams": [sys.stdin.encoding, sys.stdout.encoding, sys.stdout.line_buffering, sys.stderr.line_buffering],
    }
    print(json.dumps(shown))


def spoil(folder: str) -> None:
    os.environ.clear()
    os.environ["SPOILED"] = "1"
    sys.path.insert(0, "/nowhere")
    sys.argv[:] = ["spoiled"]
    os.chdir(folder)
    os.umask(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
    os.nice(1)
    resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
    os.dup(0)
    sys.setrecursionlimit(50)
    json.spoiled = True  # type: ignore[attr-defined]
    sys.excepthook = lambda *_: None
    random.seed(0)
    subprocess.Popen(["sleep", "600"], start_new_session=True)


def sleep(file: str, *, seconds: float = 600) -> None:
    """Starts two processes, one of them with a session of its own, notes all ids, and waits."""
    own = [subprocess.Popen(["sleep", "600"], start_new_session=new) for new in (False, True)]
    partial = Path(f"{file}.partial")
    partial.write_text(json.dumps([os.getpid(), *(process.pid for process in own)]))
    partial.rename(file)
    time.sleep(seconds)


def echo(name: str) -> None:
    random_number = random.random()
    print(json.dumps({"name": name, "stdin": sys.stdin.read(), "random": random_number, "parent": os.getppid()}))


def draw() -> None:
    """A number of each generator that nobody has seeded."""
    import numpy as np
    import torch

    print(json.dumps([random.random(), np.random.random(), torch.rand(()).item()]))  # the legacy one


def leave(code: str) -> None:
    print("last words", file=sys.stderr)
    sys.exit(int(code))


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(*sys.argv[1:])
