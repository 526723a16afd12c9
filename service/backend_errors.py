"""Errors of the systems outside: Ray, MLflow, a webhook receiver, the database.

    BackendError
    ├── UnreachableError          silence, 5xx, a proxy's refusal. Says nothing about the job: retry later.
    │   └── UnexpectedAnswerError an answer in an unexpected form. Retry later as well, and log it once.
    ├── RefusedError              a 4xx about this one item. It would be refused again: fail the item with it.
    └── DatabaseUnavailableError  full, locked, read-only or unreachable. Nothing was written.

The storage has `syncnorm.trainer.errors.StorageError` and its kinds, because workers raise them as well.
"""

from __future__ import annotations


class BackendError(Exception):
    """A system outside failed. The text is a sentence for the operator."""


class UnreachableError(BackendError):
    """It is unavailable now. Says nothing about the item of the request."""


class UnexpectedAnswerError(UnreachableError):
    """It answered in an unexpected form: a login page, half a document, a value of another type."""


class RefusedError(BackendError):
    """It refused this one item and would refuse it again. status: of the answer. code: its error code."""

    def __init__(self, message: str, status: int = 400, code: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class DatabaseUnavailableError(BackendError):
    """The database is full, locked, read-only or unreachable; the transaction was rolled back."""
