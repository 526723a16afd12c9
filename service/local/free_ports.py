"""Free ports on loopback for the embedded programs."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Iterator


def free_port(preferred: int = 0) -> int:
    """The preferred port if it is free, else another free one."""
    for port in (preferred, 0):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                number: int = probe.getsockname()[1]
                return number
    raise OSError("no free port on 127.0.0.1")


@contextlib.contextmanager
def claimed_port(preferred: int = 0) -> Iterator[int]:
    """Like `free_port`, and reserves the port against other services on this host until the block ends.

    A program takes seconds until it listens. If two services found the same port free, one would silently talk to the
    other's program.
    """
    port = free_port(preferred)
    claim = _claim(port)
    while claim is None:
        port = free_port()
        claim = _claim(port)
    with claim:
        yield port


def _claim(port: int) -> socket.socket | None:
    """A name that only one process can hold and that disappears with it: an abstract Unix socket. None: it is taken."""
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    if sys.platform != "linux":  # this platform has no such names
        return claim
    try:
        claim.bind(f"\0syncnorm-port-{port}")
    except OSError:
        claim.close()
        return None
    return claim
