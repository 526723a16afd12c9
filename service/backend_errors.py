"""What can go wrong with anything outside: Ray, MLflow, a webhook receiver, the database.

    BackendError
    ├── UnreachableError          away: silence, 5xx, a proxy's refusal. Says nothing about the job: wait, try again.
    │   └── UnexpectedAnswerError it answered, but not with what was asked for. Wait as well, and log it once.
    ├── RefusedError              a 4xx about this one item. It would be refused again: fail it with this sentence.
    └── DatabaseUnavailableError  full, locked, read-only or away. Nothing was written.

The storage has `syncnorm.trainer.errors.StorageError` and its kinds, for workers raise them as well.
"""

from __future__ import annotations


class BackendError(Exception):
    """Something outside did not do what it was asked for. The text is a sentence for the operator."""


class UnreachableError(BackendError):
    """It can't be asked right now. Says nothing about what it was asked for."""


class UnexpectedAnswerError(UnreachableError):
    """It answered, but not with what was asked for: a login page, half a document, a value of another type."""


class RefusedError(BackendError):
    """It refused this one item and would refuse it again. status: of the answer. code: its own word for the reason."""

    def __init__(self, message: str, status: int = 400, code: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class DatabaseUnavailableError(BackendError):
    """The database is full, locked, read-only or away; the transaction was rolled back."""
