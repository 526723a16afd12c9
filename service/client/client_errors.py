"""What can go wrong between a client and the service.

ClientError
├── UsageError               an id, a name, an address or a token that must not be sent; nothing was sent
├── ServiceUnreachableError  the connection was lost
│   ├── NobodyAnswersError   there was none
│   └── NotSyncnormError     something else answers
├── ServiceTimeoutError      the service took the request and did not answer in time
└── ProblemError             the service refused
"""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]


class ClientError(Exception):
    """Anything that keeps a client from an answer."""


class UsageError(ClientError, ValueError):
    """What the caller gave can't be sent to any service."""


class ServiceUnreachableError(ClientError):
    """Nobody answers at the service's address, or the connection was lost."""


class NobodyAnswersError(ServiceUnreachableError):
    """No connection was made, so nothing was sent."""


class NotSyncnormError(ServiceUnreachableError):
    """What answers at the address isn't a syncnorm service."""


class ServiceTimeoutError(ClientError):
    """The service is there, and did not answer in time."""


class ProblemError(ClientError):
    """The service refused. problem: the RFC 9457 answer. retry_after_s: what its Retry-After says."""

    def __init__(self, problem: Json, retry_after_s: float | None = None) -> None:
        self.problem = problem
        self.retry_after_s = retry_after_s
        self.status: int = problem.get("status", 0)
        self.code: str = problem.get("code", "")
        errors = [item for item in problem.get("errors") or [] if isinstance(item, dict)]
        details = [f"{item.get('pointer', '')}: {item.get('detail', '')}" for item in errors]
        super().__init__("\n  ".join([str(problem.get("detail", "The service refused.")), *details]))
