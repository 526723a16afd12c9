"""Errors of the client.

ClientError
├── UsageError               an id, a name, an address or a token that must not be sent; nothing was sent
├── ServiceUnreachableError  the connection was lost
│   ├── NobodyAnswersError   there was none
│   └── NotSyncnormError     another server answers
├── DamagedFileError         a file did not arrive as it was sent
├── ServiceTimeoutError      the service accepted the request and did not answer in time
└── ProblemError             the service refused the request
"""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]


class ClientError(Exception):
    """Base class of all errors of the client."""


class UsageError(ClientError, ValueError):
    """The arguments of a call can't be sent to any service."""


class ServiceUnreachableError(ClientError):
    """Nothing answers at the service's address, or the connection was lost."""


class NobodyAnswersError(ServiceUnreachableError):
    """No connection was made, so nothing was sent."""


class NotSyncnormError(ServiceUnreachableError):
    """The server at the address isn't syncnorm."""


class DamagedFileError(ClientError):
    """A downloaded file doesn't have its digest."""


class ServiceTimeoutError(ClientError):
    """The service accepted the request and did not answer in time."""


class ProblemError(ClientError):
    """The service refused the request. problem: the RFC 9457 answer. retry_after_s: from its Retry-After header."""

    def __init__(self, problem: Json, retry_after_s: float | None = None) -> None:
        self.problem = problem
        self.retry_after_s = retry_after_s
        self.status: int = problem.get("status", 0)
        self.code: str = problem.get("code", "")
        errors = [item for item in problem.get("errors") or [] if isinstance(item, dict)]
        details = [f"{item.get('pointer') or 'all of it'}: {item.get('detail', '')}" for item in errors]
        super().__init__("\n  ".join([str(problem.get("detail", "The service refused the request.")), *details]))
