"""A real server that speaks S3, with users and rights, behind a line that can be cut."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any
from unittest import mock

import boto3
import fsspec
import httpx

_ALLOW_ALL = {"Effect": "Allow", "Action": "*", "Resource": "*"}
_ALLOW_READING = {"Effect": "Allow", "Action": ["s3:GetObject", "s3:ListBucket"], "Resource": "*"}


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


class S3:
    """environment: what a host has that may do anything, `reading` one that may not write; endpoint and credentials."""

    def __init__(self, process: subprocess.Popen[bytes], direct_port: int) -> None:
        self.line = Line(direct_port)
        self._process = process
        self._client_of: dict[str, str] | None = None
        self._direct = f"http://127.0.0.1:{direct_port}"
        self._base = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.line.port}", "AWS_DEFAULT_REGION": "us-east-1"}
        anybody = {"aws_access_key_id": "any", "aws_secret_access_key": "any", "region_name": "us-east-1"}
        iam = boto3.client("iam", endpoint_url=self._direct, **anybody)
        self.environment = self._base | self._user(iam, "writer", _ALLOW_ALL)
        self.reading = self._base | self._user(iam, "reader", _ALLOW_READING)
        httpx.post(f"{self._direct}/moto-api/reset-auth", content=b"0").raise_for_status()  # from here on rights count

    @staticmethod
    def _user(iam: Any, name: str, statement: dict[str, object]) -> dict[str, str]:
        iam.create_user(UserName=name)
        policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
        iam.put_user_policy(UserName=name, PolicyName=name, PolicyDocument=policy)
        key = iam.create_access_key(UserName=name)["AccessKey"]
        return {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}

    def freeze(self) -> None:
        """Connections are taken, and nothing is answered."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def new_bucket(self) -> str:
        """Its URL."""
        name = f"b-{uuid.uuid4().hex[:12]}"
        with self.used():
            fsspec.filesystem("s3").mkdir(name)
        return f"s3://{name}"

    @contextlib.contextmanager
    def used(self, environment: dict[str, str] | None = None) -> Iterator[None]:
        """This process as a host that has `environment`."""
        environment = environment or self.environment
        with mock.patch.dict(os.environ, environment):
            if environment != self._client_of:  # clients keep the credentials that they found
                fsspec.get_filesystem_class("s3").clear_instance_cache()
            self._client_of = environment
            yield


@contextlib.contextmanager
def serving() -> Iterator[S3]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        env=os.environ | {"INITIAL_NO_AUTH_ACTION_COUNT": "1000000"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while server.poll() is None and not _listens(port):
            time.sleep(0.05)
        found = S3(server, port)
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
