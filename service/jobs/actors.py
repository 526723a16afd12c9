"""Who did something: a user with a token, the service itself, or the workers of an attempt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

ActorKind = Literal["user", "service", "worker"]
Outcome = Literal["done", "unchanged", "refused", "failed"]


@dataclass(frozen=True)
class Actor:
    """owner: name of the user. token_id: of the token they showed; null if authentication is off.

    request_id: of the request, as in its answer and in the service log.
    """

    kind: ActorKind
    owner: str | None = None
    token_id: str | None = None
    request_id: str | None = None

    def __str__(self) -> str:
        if self.kind != "user":
            return f"the {self.kind}"
        return f"{self.owner} (token {self.token_id})" if self.token_id else str(self.owner)


SERVICE, WORKER = Actor("service"), Actor("worker")


@dataclass(frozen=True)
class NewAuditEntry:
    """An entry of the audit: who did what to which object.

    before, after: the values that changed, never a secret's. count: how often the same was refused within a minute;
    only refusals are counted together.
    """

    by: Actor
    action: str
    object: str
    before: Mapping[str, Any] | None = None
    after: Mapping[str, Any] | None = None
    outcome: Outcome = "done"
    detail: str = ""
    count: int = 1


_BY_METHOD = {"POST": "submit", "PUT": "put", "PATCH": "change", "DELETE": "delete"}
_NAMED = {
    ("POST", "tokens"): "token.create",
    ("DELETE", "tokens"): "token.revoke",
}
_ONE = {"jobs": "job", "studies": "study", "tokens": "token", "secrets": "secret", "packages": "package"}


def action_of(method: str, route: str) -> str:
    """What a request asks for, e.g. `job.cancel` for POST /v1/jobs/{job_id}/cancel and /v1/jobs:cancel.

    >>> action_of("POST", "/v1/jobs/{job_id}/cancel"), action_of("PUT", "/v1/secrets/{name}")
    ('job.cancel', 'secret.put')
    """
    resource, *rest = route.removeprefix("/v1/").replace(":", "/").split("/")
    if resource not in _ONE:
        return f"{method} {route}"[:40]
    verbs = [part for part in rest if not part.startswith("{")]
    if verbs:
        return f"{_ONE[resource]}.{verbs[0].removesuffix('s') if verbs[0] == 'exports' else verbs[0]}"
    return _NAMED.get((method, resource), f"{_ONE[resource]}.{_BY_METHOD.get(method, method.lower())}")
