"""Files in shared memory that nobody uses any more. Tests run beside others, whose files come and go."""

from __future__ import annotations

import contextlib
from pathlib import Path

import psutil


def left_in_shared_memory() -> set[str]:
    """Names of the files that no process maps: whoever made them left them behind."""
    names = {path.name for path in Path("/dev/shm").iterdir()}
    for process in psutil.process_iter():
        with contextlib.suppress(OSError):  # it has ended
            maps = Path(f"/proc/{process.pid}/maps").read_text()
            names = {name for name in names if name not in maps}
    return names
