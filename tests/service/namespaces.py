"""A host of its own on this machine: a network namespace, joined to the test's by one link that can be cut."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

REFUSED = "needs root and the command ip, for network namespaces (Debian: iproute2)"
_HERE, _THERE = "10.213.77.1", "10.213.77.2"


def can_make_hosts() -> bool:
    return os.geteuid() == 0 and shutil.which("ip") is not None


class CutHost:
    """command: what to put before a command to run it there. gateway: this machine's address, as seen from there."""

    gateway, address = _HERE, _THERE

    def __init__(self, name: str) -> None:
        self.name = name
        self.command = ("ip", "netns", "exec", name)

    def cut(self) -> None:
        """Packets are lost in both directions, as with a pulled cable; nobody is told."""
        _ip("link", "set", self.name, "down")

    def join(self) -> None:
        _ip("link", "set", self.name, "up")


@contextmanager
def cut_host() -> Iterator[CutHost]:
    """One host; its processes must have ended when the block does."""
    name = f"sn{os.getpid()}"
    host = CutHost(name)
    _ip("netns", "add", name)
    try:
        _ip("link", "add", name, "type", "veth", "peer", "name", "up0", "netns", name)
        _ip("addr", "add", f"{_HERE}/30", "dev", name)
        _ip("-n", name, "addr", "add", f"{_THERE}/30", "dev", "up0")
        for device in ("lo", "up0"):
            _ip("-n", name, "link", "set", device, "up")
        host.join()
        _ip("-n", name, "route", "add", "default", "via", _HERE)
        yield host
    finally:
        subprocess.run(["ip", "link", "del", name], check=False, capture_output=True)
        _ip("netns", "del", name)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"
