"""One parent, as the process that started it sees it: start it, have it fork, end it."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import IO, Any

from syncnorm.trainer.forkserver import wire
from syncnorm.trainer.forkserver.parent_memory import resident_bytes

START_S = 120.0
ANSWER_S = 30.0
"""A parent that has not forked by then hangs: a fork takes some milliseconds."""
_STOP_S = 3.0
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
"""Keep numpy and pyarrow from starting threads when they are imported. Forked processes don't see these variables."""


class ForkError(Exception):
    """The parent could not run a task; a process started anew can."""


class ParentProcess:
    """Started at once. It ends when this process does, or after `idle_s` without a task."""

    def __init__(self, modules: Sequence[str], environment: Mapping[str, str], idle_s: float) -> None:
        self._control, theirs = wire.pair()
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as this object
        command = [sys.executable, "-m", "syncnorm.trainer.forkserver.parent", str(theirs.fileno()), f"{idle_s:g}"]
        with theirs:
            self._process = subprocess.Popen(
                [*command, *modules],
                env={**environment, **_ONE_THREAD},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._stderr,
                start_new_session=True,  # Ctrl-C in a terminal is for the process that started it
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def memory_bytes(self) -> int:
        """See `resident_bytes`."""
        return resident_bytes(self.pid) if self.is_alive() else 0

    def wait_ready(self) -> None:
        """Until it has imported its modules; called once. Raises: ForkError."""
        self._control.settimeout(START_S)
        try:
            message, _ = wire.receive(self._control)
        except OSError as error:
            raise ForkError(f"its imports took longer than {START_S:g} s") from error
        if message is None:
            self._stderr.seek(0)
            raise ForkError(f"it ended while it started: {self._stderr.read().decode(errors='replace')[-2000:]}")
        if message["threads"] > 1:
            raise ForkError(f"its imports started {message['threads'] - 1} threads, which would not survive a fork")
        self._control.settimeout(ANSWER_S)
        self._stderr.close()

    def run(self, task: Mapping[str, Any], streams: Sequence[IO[bytes]], timeout_s: float) -> int:
        """Fork a process for a task; its exit code. At a timeout it is killed, with all that it started.

        task: module, arguments, environment. Raises: ForkError; subprocess.TimeoutExpired.
        """
        lease, theirs = wire.pair()
        with lease:
            with theirs:
                self._ask(task, [theirs.fileno(), *(stream.fileno() for stream in streams)])
            lease.settimeout(ANSWER_S)
            try:
                begun = self._answer(lease)
            except TimeoutError as error:
                self.kill()
                raise ForkError(f"it hung for {ANSWER_S:g} s and was killed") from error
            if "refused" in begun:
                raise ForkError(begun["refused"])
            lease.settimeout(timeout_s)
            try:
                return int(self._answer(lease)["code"])
            except TimeoutError as error:
                raise subprocess.TimeoutExpired(task["module"], timeout_s) from error

    def _ask(self, task: Mapping[str, Any], descriptors: Sequence[int]) -> None:
        try:
            wire.send(self._control, task, descriptors)
        except OSError as error:
            raise ForkError(f"it takes no task: {error}") from error

    def _answer(self, lease: Any) -> dict[str, Any]:
        """Raises: TimeoutError; ForkError."""
        message, _ = wire.receive(lease)
        if message is None:
            raise ForkError("it ended")
        return message

    def release(self) -> None:
        """Let it end once its present tasks are over."""
        self._control.close()

    def stop(self) -> None:
        """End it and its tasks, and wait for that."""
        self.release()
        self._process.terminate()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()
        self._stderr.close()

    def kill(self) -> None:
        """The same at once; its forked processes end with it."""
        self._process.kill()
        self._process.wait()
