"""Reads a trace as Perfetto and chrome://tracing take it: the JSON object form of the trace event format."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

_PHASES = set("XBEibnesftPNODMVvRcSTFpC")


def read_trace(path: Path) -> list[dict[str, Any]]:
    """The events, once each has what a viewer needs. Raises: AssertionError naming one that has not."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        trace = json.load(file, parse_constant=_refuse)
    events: list[dict[str, Any]] = trace["traceEvents"]
    for event in events:
        assert event["ph"] in _PHASES, event
        assert isinstance(event["name"], str), event
        assert math.isfinite(event["ts"]), event
        assert {"pid", "tid"} <= event.keys(), event
        assert event["ph"] != "X" or event["dur"] >= 0, event
    return events


def _refuse(word: str) -> Any:
    raise AssertionError(f"{word} is no JSON number")
