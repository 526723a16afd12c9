"""Messages between a parent, its forked processes' clients, and file descriptors that travel with them."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping, Sequence
from typing import Any

_MOST_BYTES = 2**20
_MOST_DESCRIPTORS = 8


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected sockets that keep messages apart. Nothing of them lies in the file system."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(channel: socket.socket, message: Mapping[str, Any], descriptors: Sequence[int] = ()) -> None:
    """Raises: OSError if the other side has gone, or if the message is too long for one packet."""
    socket.send_fds(channel, [json.dumps(message).encode()], descriptors)


def receive(channel: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """The next message and the descriptors that came with it; None once the other side has closed.

    Raises: OSError, among them TimeoutError.
    """
    flags = socket.MSG_CMSG_CLOEXEC
    data, descriptors, _, _ = socket.recv_fds(channel, _MOST_BYTES, _MOST_DESCRIPTORS, flags)
    return (json.loads(data) if data else None), descriptors
