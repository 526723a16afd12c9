"""Servers of object stores behind a line that can be cut: what those of S3, Google and Azure have in common."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any, TypeVar
from unittest import mock

import fsspec

S = TypeVar("S", bound="BucketServer")


class Line:
    """Carries TCP connections to a port of this host, until it is cut."""

    def __init__(self, to_port: int) -> None:
        self._to = to_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open = True
        self._thread = threading.Thread(target=self._carry, name="line")
        self._thread.start()

    def cut(self) -> None:
        """Connections end, and new ones are refused."""
        self._open = False
        self._thread.join()

    def mend(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self._open = True
        self._thread = threading.Thread(target=self._carry, name="line")
        self._thread.start()

    def _carry(self) -> None:
        peers: dict[socket.socket, socket.socket] = {}
        with selectors.DefaultSelector() as selector, contextlib.ExitStack() as stack:
            stack.enter_context(self._listener)
            selector.register(self._listener, selectors.EVENT_READ)
            while self._open:
                for key, _ in selector.select(0.05):
                    if key.fileobj is self._listener:
                        near = stack.enter_context(self._listener.accept()[0])
                        far = stack.enter_context(socket.create_connection(("127.0.0.1", self._to)))
                        peers |= {near: far, far: near}
                        selector.register(near, selectors.EVENT_READ)
                        selector.register(far, selectors.EVENT_READ)
                    else:
                        self._pass_on(key.fileobj, peers, selector)  # type: ignore[arg-type]

    @staticmethod
    def _pass_on(
        one: socket.socket, peers: dict[socket.socket, socket.socket], selector: selectors.BaseSelector
    ) -> None:
        if one not in peers:
            return
        try:
            data = one.recv(2**16)
            if data:
                peers[one].sendall(data)
                return
        except OSError:
            pass
        for each in (one, peers[one]):
            selector.unregister(each)
            del peers[each]
            each.close()


class BucketServer:
    """environment: what a host has that may do anything, `reading` one that may not write; endpoint and credentials."""

    scheme: str
    environment: dict[str, str]
    reading: dict[str, str]

    def __init__(self, process: subprocess.Popen[bytes], direct_port: int) -> None:
        self.line = Line(direct_port)
        self._process = process
        self._direct = f"http://127.0.0.1:{direct_port}"
        self._client_of: dict[str, str] | None = None

    def freeze(self) -> None:
        """Connections are taken, and nothing is answered."""
        self._process.send_signal(signal.SIGSTOP)
        os.waitpid(self._process.pid, os.WUNTRACED)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def new_bucket(self) -> str:
        """Its URL."""
        name = f"b-{uuid.uuid4().hex[:12]}"
        with self.used():
            self.make_bucket(name)
        return f"{self.scheme}://{name}"

    def make_bucket(self, name: str) -> None:
        raise NotImplementedError

    def forget_clients(self) -> None:
        """Clients keep the credentials that they found."""
        fsspec.get_filesystem_class(self.scheme).clear_instance_cache()

    @contextlib.contextmanager
    def used(self, environment: dict[str, str] | None = None) -> Iterator[None]:
        """This process as a host that has `environment`."""
        environment = environment or self.environment
        with mock.patch.dict(os.environ, environment):
            if environment != self._client_of:
                self.forget_clients()
            self._client_of = environment
            yield


@contextlib.contextmanager
def serving(
    command: Callable[[int], list[str]], made_of: Callable[[Any, int], S], environment: dict[str, str] | None = None
) -> Iterator[S]:
    """command: that of the server, given a port."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen(command(port), env=os.environ | (environment or {}), **quiet)  # type: ignore[call-overload]
    try:
        while server.poll() is None and not _listens(port):
            time.sleep(0.05)
        found = made_of(server, port)
        try:
            yield found
        finally:
            found.line.cut()
    finally:
        server.terminate()
        server.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
