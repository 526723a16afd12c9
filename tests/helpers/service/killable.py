"""Services that are forked from one process with everything imported, so that killing a hundred takes seconds.

`python -m tests.helpers.service.killable HOME URL PORT` forks a service for each line it reads, and answers its
pid.
A line holds [chance of dying after an effect, bug to plant].
"""

from __future__ import annotations

import json
import os
import random
import secrets
import signal
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import uvicorn

from syncnorm.service.api.app import create_app
from syncnorm.service.integrations.ray_jobs import ENTRYPOINTS, Kind
from syncnorm.service.local.programs import LocalRay
from syncnorm.service.server import listen, make_context
from syncnorm.service.settings import Settings

_EFFECTS = {
    "store": ("jobs.move", "attempts.note", "jobs.note", "attempts.release", "exports.change"),
    "dispatcher": ("start", "end"),
    "tracker": ("run_for", "set_status"),
}


class Mortal:
    """A port after whose effects this process may be gone. methods: of the port, or of its parts (`part.method`)."""

    def __init__(self, port: Any, methods: tuple[str, ...], death_chance: float) -> None:
        self._port, self._methods, self._death_chance = port, methods, death_chance
        self._random = random.Random(os.getpid())

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._port, name)
        if of_part := tuple(one.partition(".")[2] for one in self._methods if one.startswith(f"{name}.")):
            return Mortal(real, of_part, self._death_chance)
        if name not in self._methods:
            return real

        def act(*args: Any, **options: Any) -> Any:
            result = real(*args, **options)
            if self._random.random() < self._death_chance:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return act


class NewIdEachTime:
    """The planted bug: what is started carries an id made up at the start, not one written down before."""

    def __init__(self, port: Any) -> None:
        self._port = port

    def __getattr__(self, name: str) -> Any:
        return getattr(self._port, name)

    def start(self, submission_id: str, folder: str, kind: Kind = "attempt") -> None:
        self._port.start(f"{submission_id}-{secrets.token_hex(4)}", folder, kind)


def run(home: Path, url: str, port: int, death_chance: float, bug: str) -> None:
    settings = replace(Settings(home=home), port=port, tick_s=0.2, max_queued=10**6)
    with ExitStack() as stack, listen(settings) as listener:
        context = make_context(settings, LocalRay(url, "", ENTRYPOINTS), url, f"http://127.0.0.1:{port}", stack)
        backends: Any = context.reconciler.backends
        if bug == "new id each time":
            backends.dispatcher = Mortal(NewIdEachTime(backends.dispatcher), ("start",), death_chance)
        for name, methods in _EFFECTS.items() if not bug else ():
            setattr(backends, name, Mortal(getattr(backends, name), methods, death_chance))
        config = uvicorn.Config(create_app(context), log_config=None, access_log=False, timeout_graceful_shutdown=1)
        uvicorn.Server(config).run(sockets=[listener])


def main(home: Path, url: str, port: int) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children need no waiting for
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            run(home, url, port, *json.loads(line))
            os._exit(0)
        print(pid, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
