"""Reads the result of an attempt from a file or a row; of a damaged one, the parts that can be read.

A missing result means that the attempt was lost and starts again, so an existing file must never count as missing.
"""

from __future__ import annotations

import json
import logging
from typing import Any

from pydantic import ValidationError

from syncnorm.trainer.contract.failure import FailureReason
from syncnorm.trainer.contract.protocol import Result

logger = logging.getLogger(__name__)

_LARGEST = 16 * 2**20
_DECISIVE = frozenset({"fence", "outcome", "model"})
"""Fields without which it is unknown how the attempt ended."""


def parse_result(content: bytes, fence: str) -> Result | None:
    """The result in a file of the attempt with this fence; None: it is another attempt's."""
    if len(content) > _LARGEST:
        return _unreadable(fence, f"it has {len(content)} bytes, more than {_LARGEST}")
    try:
        raw = json.loads(content)
    except (ValueError, RecursionError) as error:
        return _unreadable(fence, f"it is not JSON: {error}")
    if not isinstance(raw, dict):
        return _unreadable(fence, "it is not a JSON object")
    return read_result(raw, fence)


def read_result(raw: dict[str, Any], fence: str) -> Result | None:
    """The same from parsed JSON. Fields that can't be read are ignored, and named in the log and the message."""
    if raw.get("fence") != fence:
        return None
    try:
        return Result.model_validate(raw)
    except ValidationError as error:
        wrong = {str(item["loc"][0]) for item in error.errors(include_url=False, include_input=False)}
        if wrong & _DECISIVE:
            return _unreadable(fence, f"{', '.join(sorted(wrong & _DECISIVE))} can't be read")
    left_out = ", ".join(sorted(wrong))
    logger.warning(
        "parts of a result can't be read and are ignored", extra={"left_out": left_out, "outcome": str(raw["outcome"])}
    )
    kept = {name: value for name, value in raw.items() if name not in wrong}
    kept["message"] = f"{kept.get('message', '')} (Parts of its result can't be read: {left_out}.)".strip()
    return Result.model_validate(kept)


def _unreadable(fence: str, why: str) -> Result:
    logger.warning("a result can't be read; the attempt counts as failed", extra={"why": why})
    message = f"The attempt left a result.json that can't be read, so it is unknown how it ended: {why}."
    return Result(fence=fence, outcome="failed", reason=FailureReason.INTERNAL, message=message)
