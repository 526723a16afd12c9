"""What the parents of warm processes take."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from syncnorm.trainer.forkserver import launcher


@dataclass(frozen=True)
class Memory:
    """parents: how many there are."""

    parents: int
    memory_bytes: int


def resident_bytes(pid: int) -> int:
    """Memory of a process. What forked processes share with it counts here, once; 0: it has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    return 0


def memory_of_node(folder: Path) -> Memory:
    """That of the parent whose socket is in `folder`, if there is one."""
    with contextlib.suppress(OSError, ValueError):
        pid = int((folder / launcher.LOCK).read_text())
        if launcher.NODE_PARENT.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():  # its id may be another's by now
            return Memory(1, resident_bytes(pid))
    return Memory(0, 0)
