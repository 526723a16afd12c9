"""From Python's logging to the logs of the job."""

from __future__ import annotations

import logging

from syncnorm.trainer.contract.text import text_of
from syncnorm.trainer.reporting.log_buffer import Level
from syncnorm.trainer.reporting.reporter import Reporter


class ReportingHandler(logging.Handler):
    """Sends log records of this process to the job's logs."""

    def __init__(self, reporter: Reporter) -> None:
        super().__init__(logging.INFO)
        self._reporter = reporter

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith(("httpx", "httpcore")):
            return
        level: Level = "ERROR" if record.levelno >= logging.ERROR else "INFO"
        if record.levelno == logging.WARNING:
            level = "WARNING"
        try:
            text = self.format(record)
        except Exception as error:  # arguments that don't fit the message, or a value without a text
            text = f"{text_of(record.msg)} [the arguments of this log record can't be shown: {text_of(error)}]"
        self._reporter.log(level, text)
