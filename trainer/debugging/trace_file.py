"""Turns the raw trace of a profile into the file for the run, and prints its summary: a process of its own.

Imports nothing but the standard library, and files of ours that do the same. The process that trains keeps
Python's lock meanwhile, and whatever goes wrong here does not reach it.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

LIMIT_S = 120.0
MOST_RAW_BYTES = 512 * 2**20
_LEVEL = 6
_NICE = 5
"""Behind the process that trains. At 19 it would wait for minutes on a host that others keep busy."""


class TraceError(Exception):
    """The trace can't be read, or is too large."""


@dataclass(frozen=True)
class TraceWork:
    """raw: the trace as torch wrote it. target: where the file for the run belongs. nodes, on_device: of Marks.

    hidden: secrets, which are taken out. most_bytes: of the file for the run; a larger one is not kept.
    """

    raw: str
    target: str
    nodes: Sequence[tuple[str, int, int]]
    on_device: bool
    hidden: Sequence[str]
    most_bytes: int
    most_layers: int
    most_operators: int


def process(work: TraceWork) -> dict[str, Any]:
    """Run it in a process of lower priority: {"summary": …, "bytes": size of the file, 0 if it was not kept}.

    Raises: TraceError.
    """
    if (size := Path(work.raw).stat().st_size) > MOST_RAW_BYTES:
        raise TraceError(f"the trace takes {size / 2**20:.0f} MiB, more than {MOST_RAW_BYTES // 2**20}: ask for less")
    command = [sys.executable, "-I", "-S", __file__]
    try:
        done = subprocess.run(
            command,
            input=json.dumps(asdict(work)),
            capture_output=True,
            text=True,
            env={},
            timeout=LIMIT_S,
            check=False,
        )
        found: dict[str, Any] = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise TraceError(f"the trace could not be read: {type(error).__name__}") from error
    if "problem" in found:
        raise TraceError(found["problem"])
    return found


def _process_here(work: TraceWork) -> dict[str, Any]:
    from syncnorm.trainer.debugging.trace_summary import Marks, summarize
    from syncnorm.trainer.storage.atomic_files import write_atomic

    trace = json.loads(Path(work.raw).read_bytes())
    trace.pop("traceName", None)  # a path on this host
    if work.hidden:
        trace = _without(trace, work.hidden)
    marks = Marks([(path, first, last) for path, first, last in work.nodes], work.on_device)
    summary = summarize(trace["traceEvents"], marks, most_layers=work.most_layers, most_operators=work.most_operators)
    content = gzip.compress(json.dumps(trace, separators=(",", ":")).encode(), _LEVEL, mtime=0)
    if len(content) > work.most_bytes:
        return {"summary": summary, "bytes": 0}
    write_atomic(Path(work.target), content)
    return {"summary": summary, "bytes": len(content)}


def _without(value: Any, hidden: Sequence[str]) -> Any:
    """The same without secrets in its texts. Numbers stay numbers."""
    from syncnorm.trainer.reporting.redaction import redact

    if isinstance(value, str):
        return redact(value, hidden)
    if isinstance(value, dict):
        return {redact(key, hidden): _without(item, hidden) for key, item in value.items()}
    return [_without(item, hidden) for item in value] if isinstance(value, list) else value


def _main() -> None:
    os.nice(_NICE)
    sys.path.insert(0, str(Path(__file__).parents[3]))
    work = TraceWork(**json.loads(sys.stdin.read()))
    try:
        answer = _process_here(work)
    except Exception as error:  # whatever a trace holds: the caller tells the user
        answer = {"problem": f"the trace could not be read: {type(error).__name__}: {error}"}
    print(json.dumps(answer))


if __name__ == "__main__":
    _main()
