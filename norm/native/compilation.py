"""Compiles one file once, however many processes want it at a time. A script of the standard library alone."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FAILED = ".failed"
_TIMEOUT_S = 900
_RETRY_AFTER_S = 86400


def compile_once(target: Path, command: list[str], wait: bool = False) -> None:
    """Run `command` with `target` as its output, unless it is there or another process is at it. wait: for that one.

    What lies at `target` is always whole. After a failure a file beside it says why; see `failure`.
    """
    with target.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return
        if not target.exists():
            _compile(target, command)


def failure(target: Path) -> str | None:
    """Why compiling `target` failed within the last day; None where it did not. After a day it is tried again."""
    record = target.with_suffix(FAILED)
    try:
        is_recent = time.time() - record.stat().st_mtime < _RETRY_AFTER_S
        return record.read_text(errors="replace") if is_recent and not target.exists() else None
    except FileNotFoundError:
        return None


def _compile(target: Path, command: list[str]) -> None:
    handle, partial = tempfile.mkstemp(dir=target.parent, suffix=".tmp")
    os.close(handle)
    try:
        subprocess.run([*command, "-o", partial], check=True, capture_output=True, text=True, timeout=_TIMEOUT_S)
        Path(partial).replace(target)
    except (OSError, subprocess.SubprocessError) as error:
        lines = (getattr(error, "stderr", None) or "").strip().splitlines()
        reason = next((line for line in lines if "error" in line), lines[0] if lines else error)
        target.with_suffix(FAILED).write_text(f"{command[0]} failed: {reason}"[:2000])
    finally:
        Path(partial).unlink(missing_ok=True)


if __name__ == "__main__":
    os.nice(19)
    compile_once(Path(sys.argv[1]), sys.argv[2:])
