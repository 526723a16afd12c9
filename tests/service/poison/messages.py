"""Every message of the contract's protocol, good, with one extreme in it; and the files that an attempt leaves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from syncnorm.trainer.contract import protocol
from tests.service.poison.extremes import Poison, extremes, placed, places, written

FENCE = "@fence@"
"""Stands for the fence of the attempt that a message is sent for."""
RESULT: dict[str, Any] = {
    "fence": FENCE,
    "outcome": "succeeded",
    "step": 3,
    "metrics": {"val/accuracy": 0.5},
    "model": {"uri": "models:/m-1", "registered": "mine", "certificate": {"passed": True}},
}
PROFILE: dict[str, Any] = {
    "summary": {
        "device": "cpu",
        "first_step": 3,
        "steps": 2,
        **dict.fromkeys(("step_ms", "between_ms", "forward_ms", "backward_ms", "norm_share", "exchange_ms"), 1.5),
        "exchange_share": 0.1,
        "layers": [{"path": "a.b", "forward_ms": 1.0, "backward_ms": 2.0, "exchange_ms": 0.5, "share": 0.1}],
        "operators": [{"name": "aten::add", "calls": 2.0, "self_ms": 0.5, "share": 0.1}],
    },
    "trace": "profile/step-3-rank-0.json.gz",
    "trace_bytes": 1000,
    "notes": ["Ended with the epoch."],
}
GOOD: dict[str, tuple[type[BaseModel], dict[str, Any]]] = {
    "heartbeat": (protocol.Heartbeat, {"source": "rank-0", "phase": "training", "step": 1}),
    "progress": (
        protocol.Progress,
        {"epoch": 0, "epochs": 10, "step": 1, "steps": 100, "metrics": {"train/loss": 1.0}},
    ),
    "logs": (
        protocol.LogLines,
        {"lines": [{"rank": 0, "seq": 1, "at": "2026-01-01T00:00:00Z", "level": "INFO", "text": "hello"}]},
    ),
    "placement": (protocol.Placement, {"ranks": [{"rank": 0, "host": "h", "pid": 1, "node_id": "n", "gpu": "H100"}]}),
    "guarantees": (
        protocol.GuaranteesReport,
        {
            "guarantees": {
                name: {"holds": "yes", "why": "there is one worker"}
                for name in ("equals_one_device", "resumes_exactly", "exported")
            }
        },
    ),
    "checkpoints": (
        protocol.CheckpointFact,
        {"path": "/c", "step": 1, "epoch": 0, "digest": "0", "size_bytes": 1, "kept": [1]},
    ),
    "events": (protocol.Event, {"kind": "non_finite", "message": "A batch was not finite.", "data": {"step": 1}}),
    "stacks": (protocol.Stacks, {"rank": 0, "request": 1, "threads": [{"name": "MainThread", "stack": "  here"}]}),
    "profile": (protocol.Profile, {"rank": 0, "request": 1, "answer": PROFILE}),
    "stacks/request": (protocol.StacksWanted, {}),
    "requests": (protocol.RequestWatch, {"rank": 0, "known": None, "wait_s": 0}),
    "exit": (protocol.Exit, {"result": RESULT}),
    "secrets": (protocol.SecretsRequest, {}),
}
"""By the path a message is posted to."""


def of_kind(kind: str, share: int) -> Iterator[Poison]:
    model, good = GOOD[kind]
    base = {"fence": FENCE, **good}
    for place in places(model):
        for extreme, value in extremes(place, share).items():
            yield Poison(f"{place.name}: {extreme}", written(placed(base, place.path, value)), place.name)


def of_results() -> Iterator[Poison]:
    """What result.json may hold, for user code can write it: all that is a result, and some that is none."""
    number = 0
    for place in places(protocol.Result):
        for extreme, value in extremes(place).items():
            poison = Poison(f"result.json {place.name}: {extreme}", written(placed(RESULT, place.path, value)))
            number += 1
            if _is_result(poison.content) or number % 12 == 0:
                yield poison
    good = written(RESULT)
    odd = {"nothing": b"", "half": good[: len(good) // 2], "zeros": b"\0" * 4096, "twice": good * 2, "words": b"done"}
    odd |= {"binary": bytes(range(256)), "null": b"null", "list": b"[]", "10 MB": b'{"a": "' + b"x" * 10**7 + b'"}'}
    for name, content in odd.items():
        yield Poison(f"result.json is {name}", content)


def _is_result(content: bytes) -> bool:
    try:
        protocol.Result.model_validate_json(content)
    except ValueError:
        return False
    return True


ODD_LINES: dict[str, bytes] = {
    "zeros after a power cut": b"\0" * 512,
    "half a line": b'{"key": "val/error", "value": 0.',
    "a number": b"123",
    "null": b"null",
    "a list": b"[1]",
    "no fields": b"{}",
    "not UTF-8": b'{"key": "caf\xe9", "value": 1, "step": 1, "timestamp": 1}',
    "value in words": b'{"key": "val/error", "value": "much", "step": 1, "timestamp": 1}',
    "value NaN": b'{"key": "val/error", "value": NaN, "step": 1, "timestamp": 1}',
    'value "NaN"': b'{"key": "val/error", "value": "NaN", "step": 1, "timestamp": 1}',
    "value 1e400": b'{"key": "val/error", "value": 1e400, "step": 1, "timestamp": 1}',
    "value null": b'{"key": "val/error", "value": null, "step": 1, "timestamp": 1}',
    "step of 30 digits": b'{"key": "val/error", "value": 0.1, "step": ' + b"9" * 30 + b', "timestamp": 1}',
    "step in words": b'{"key": "val/error", "value": 0.1, "step": "one", "timestamp": 1}',
    "key is a list": b'{"key": ["val/error"], "value": 0.1, "step": 1, "timestamp": 1}',
    "deep": b"[" * 50_000,
    "5000 digits": b'{"key": "val/error", "value": ' + b"9" * 5000 + b', "step": 1, "timestamp": 1}',
    "huge": b'{"key": "' + b"k" * 2_000_000 + b'", "value": 0.1, "step": 1, "timestamp": 1}',
}
"""Lines of metrics.jsonl among good ones."""


def good_line(step: int) -> bytes:
    return json.dumps({"key": "val/error", "value": 1 / step, "step": step, "timestamp": step}).encode()


def for_fence(content: bytes, fence: str) -> bytes:
    return content.replace(FENCE.encode(), fence.encode())
