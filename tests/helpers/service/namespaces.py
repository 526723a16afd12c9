"""A host of its own on this machine: a network namespace, joined to the test's by one link that can be cut."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

REFUSED = "needs root and the command ip, for network namespaces (Debian: iproute2)"
_HERE, _THERE = "10.213.77.1", "10.213.77.2"
_NOBODY = "02:00:00:00:00:00"


def can_make_hosts() -> bool:
    return os.geteuid() == 0 and shutil.which("ip") is not None


class CutHost:
    """command: what to put before a command to run it there. gateway: this machine's address, as seen from there.

    name: also of its link, on both sides.
    """

    gateway, address = _HERE, _THERE

    def __init__(self, name: str) -> None:
        self.name = name
        self.command = ("ip", "netns", "exec", name)

    def apart(self, *hidden: Path) -> tuple[str, ...]:
        """As `command`, with processes of its own and, in place of these folders, empty ones: else Ray takes what it
        finds of another host for its own. What is left behind there stays until the command itself ends."""
        mounts = "".join(f"mount -t tmpfs none {shlex.quote(str(folder))} && " for folder in hidden)
        apart = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
        return (*self.command, *apart, "sh", "-c", f'{mounts}"$@"; exec sleep infinity', "sh")

    def processes(self) -> list[psutil.Process]:
        """Everything that runs there."""
        done = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=True)
        return [psutil.Process(int(pid)) for pid in done.stdout.split() if psutil.pid_exists(int(pid))]

    def cut(self) -> None:
        """Packets are lost in both directions, and nobody is told: they go to a hardware address that nobody has."""
        for side, other in self._sides():
            _ip(*side, "neigh", "replace", other, "lladdr", _NOBODY, "dev", self.name, "nud", "permanent")

    def join(self) -> None:
        for side, other in self._sides():
            _ip(*side, "neigh", "del", other, "dev", self.name)

    def _sides(self) -> tuple[tuple[tuple[str, ...], str], ...]:
        """(options of ip that lead to one side, the address of the other)."""
        return ((), _THERE), (("-n", self.name), _HERE)


@contextmanager
def cut_host() -> Iterator[CutHost]:
    """One host; its processes must have ended when the block does."""
    name = f"sn{os.getpid()}"
    host = CutHost(name)
    _ip("netns", "add", name)
    try:
        _ip("link", "add", name, "type", "veth", "peer", "name", name, "netns", name)
        _ip("addr", "add", f"{_HERE}/30", "dev", name)
        _ip("-n", name, "addr", "add", f"{_THERE}/30", "dev", name)
        for device in ("lo", name):
            _ip("-n", name, "link", "set", device, "up")
        _ip("link", "set", name, "up")
        _ip("-n", name, "route", "add", "default", "via", _HERE)
        yield host
    finally:
        subprocess.run(["ip", "link", "del", name], check=False, capture_output=True)
        _ip("netns", "del", name)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"
