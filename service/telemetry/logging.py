"""The service log on standard error: lines for people on a terminal, JSON lines elsewhere."""

from __future__ import annotations

import json
import logging
import time
from datetime import UTC, datetime
from typing import Any, TextIO

from syncnorm.trainer.contract.text import visible

_OURS = "syncnorm"
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def configure(stream: TextIO) -> None:
    """Log our messages from INFO on, and those of libraries from WARNING on, with the fields that a call gives as
    `extra`."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(Lines() if stream.isatty() else JsonLines())
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger(_OURS).setLevel(logging.INFO)


class JsonLines(logging.Formatter):
    """One object a line: at (RFC 3339, UTC), level, logger, message, the call's own fields, traceback."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class Lines(logging.Formatter):
    """`12:00:00 WARNING  Ray unreachable; nothing starts until it answers  error=…`, without control characters."""

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        fields = "".join(f"  {name}={value}" for name, value in _fields(record).items()).replace("\n", "\\n")
        text = f"{clock} {record.levelname:<8} {record.getMessage()}{fields}"
        return visible(f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """The fields that the call gave, without those of other record factories, such as Ray's _ray_timestamp_ns."""
    return {name: value for name, value in vars(record).items() if name not in _STANDARD and name[:1] != "_"}
