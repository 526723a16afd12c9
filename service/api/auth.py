"""Bearer tokens: who sends a request, and what the token allows.

A token reads `sn_<id>_<secret>` with a secret of 256 random bits. Only its SHA-256 is kept, because a secret that long
needs no slow hash. A client that shows the right secret of an expired or revoked token is told so. An unknown id and a
wrong secret get the same answer, after the same work.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from syncnorm.service.api.http.errors import ApiError
from syncnorm.service.confinement import private_text
from syncnorm.service.jobs.actors import Actor
from syncnorm.service.jobs.job import Job
from syncnorm.service.jobs.study import Study
from syncnorm.service.store import StoredToken
from syncnorm.service.store.administration.tokens import TokenTable

SCOPES = ("read", "submit", "admin")
ADMIN_FILE = "admin.token"
ADMIN_ID = "admin"
"""Name of the token from the file in the audit."""
_MOST_KNOWN = 10_000


@dataclass(frozen=True)
class Principal:
    """The caller of a request, and what the token allows."""

    name: str
    scopes: frozenset[str]
    token_id: str | None = None
    """None if authentication is off."""
    request_id: str | None = None

    @property
    def actor(self) -> Actor:
        return Actor("user", self.name, self.token_id, self.request_id)

    @property
    def is_admin(self) -> bool:
        return "admin" in self.scopes

    def may(self, scope: str) -> bool:
        return self.is_admin or scope in self.scopes

    def may_see(self, what: Job | Study) -> bool:
        return self.is_admin or what.owner == self.name


class UnauthorizedError(ApiError):
    """401. reason: for the audit. token: the one that was shown, where its secret was right."""

    def __init__(self, detail: str, reason: str, token: StoredToken | None = None) -> None:
        challenge = "Bearer" if reason == "no token" else 'Bearer error="invalid_token"'
        super().__init__(401, "unauthorized", detail, headers={"WWW-Authenticate": challenge})
        self.reason = reason
        self.token = token


_WHERE_FROM = "An admin makes a new one with `syncnorm token create`."
_NO_TOKEN = (
    "This request needs a token: send `Authorization: Bearer sn_…`, or set SYNCNORM_TOKEN. An admin makes one with "
    "`syncnorm "
    "token create`; the first admin's is in the file admin.token of the service's state folder (SYNCNORM_HOME)."
)

LOCAL = Principal("local", frozenset(SCOPES))
"""The caller of every request if authentication is off."""


class Authenticator:
    """Turns an Authorization header into a principal, and caches it for `memory_s`. A token that is revoked here is
    forgotten at once, one that another replica revokes within `memory_s`."""

    def __init__(
        self,
        tokens: TokenTable,
        now: Callable[[], datetime],
        admin_token: str | None,
        *,
        memory_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """now: the time of the database, by which tokens expire. admin_token: None turns authentication off."""
        self._tokens = tokens
        self._now = now
        self._clock = clock
        self._admin = None if admin_token is None else digest(admin_token)
        self._memory_s = memory_s
        self._known: dict[str, _Known] = {}

    def cached(self, authorization: str) -> Principal | None:
        """The cached principal of this header; None: call `authenticate`. Never waits for the database."""
        if self._admin is None:
            return LOCAL
        known = self._known.get(digest(authorization))
        return known.principal if known is not None and self._clock() < known.until else None

    def authenticate(self, authorization: str) -> Principal:
        """Raises: ApiError 401."""
        if self._admin is None:
            return LOCAL
        scheme, _, token = authorization.partition(" ")
        if not authorization:
            raise UnauthorizedError(_NO_TOKEN, "no token")
        if scheme.lower() != "bearer":
            raise UnauthorizedError(
                f"The Authorization header must be `Bearer sn_…`. {_WHERE_FROM}", "not a bearer token"
            )
        given = digest(token)
        if hmac.compare_digest(given, self._admin):
            return self._remember(authorization, Principal("admin", frozenset(SCOPES), ADMIN_ID))
        stored = self._tokens.get(_token_id(token))
        expected = self.digest_of(stored)
        if not hmac.compare_digest(given, expected) or stored is None:
            raise UnauthorizedError(
                f"This token is unknown, or its secret is wrong. {_WHERE_FROM}", "unknown token or wrong secret"
            )
        now = self._now()
        require_standing(stored, now)
        left_s = math.inf if stored.expires_at is None else (stored.expires_at - now).total_seconds()
        return self._remember(authorization, holder(stored), left_s)

    def record(self, token_id: str) -> StoredToken | None:
        """The stored token of this id, the one of the first admin included."""
        if token_id == ADMIN_ID and self._admin is not None:
            return StoredToken(ADMIN_ID, "admin", self._admin, list(SCOPES), self._now(), None, None)
        return self._tokens.get(token_id)

    def digest_of(self, stored: StoredToken | None) -> str:
        """The digest that a secret is compared with; of an unknown token another, so that the work is the same."""
        return stored.digest if stored else self._admin or ""

    @property
    def is_on(self) -> bool:
        return self._admin is not None

    def forget(self, token_id: str) -> None:
        """The token was revoked."""
        self._known = {key: known for key, known in self._known.items() if known.principal.token_id != token_id}

    def _remember(self, authorization: str, principal: Principal, left_s: float = math.inf) -> Principal:
        if len(self._known) >= _MOST_KNOWN:
            self._known = {}
        self._known[digest(authorization)] = _Known(principal, self._clock() + min(self._memory_s, left_s))
        return principal


@dataclass(frozen=True)
class _Known:
    principal: Principal
    until: float


def holder(token: StoredToken) -> Principal:
    return Principal(token.owner, frozenset(token.scopes), token.id)


def require(principal: Principal, scope: str) -> Principal:
    """Raises: ApiError 403."""
    if not principal.may(scope):
        detail = (
            f"This needs a token with the scope {scope}; yours has {', '.join(sorted(principal.scopes)) or 'none'}."
        )
        raise ApiError(403, "forbidden", detail)
    return principal


def new_token(owner: str, scopes: list[str], now: datetime, expires_at: datetime | None) -> tuple[str, StoredToken]:
    """(the token, shown once; the record that is stored)."""
    token_id = secrets.token_hex(8)
    token = f"sn_{token_id}_{secrets.token_urlsafe(32)}"
    return token, StoredToken(token_id, owner, digest(token), scopes, now, expires_at, None)


def digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def admin_file(file: Path | None, home: Path) -> Path:
    """Where the token of the first admin is: the file from the settings, or one in the state folder."""
    return file or home / ADMIN_FILE


def admin_token(file: Path | None, home: Path) -> str:
    """The token of the first admin: from its file, or made and kept in the state folder.

    Raises: ValueError if the file is empty; OSError if it can't be read.
    """
    path = admin_file(file, home)
    token = private_text(path, lambda: f"sn_admin_{secrets.token_urlsafe(32)}", is_given=file is not None)
    if len(token) < 32:
        raise ValueError(f"{path} must hold a token of at least 32 characters, got {len(token)}")
    return token


def _token_id(token: str) -> str:
    parts = token.split("_", 2)
    return parts[1][:20] if len(parts) == 3 and parts[0] == "sn" and parts[1].isascii() and "\x00" not in token else ""


def require_standing(token: StoredToken, now: datetime) -> None:
    """Call it only after the secret of the token was verified. Raises: UnauthorizedError."""
    if token.revoked_at is not None:
        raise UnauthorizedError(f"This token was revoked {_on(token.revoked_at)}. {_WHERE_FROM}", "revoked", token)
    if token.expires_at is not None and token.expires_at <= now:
        raise UnauthorizedError(f"This token expired {_on(token.expires_at)}. {_WHERE_FROM}", "expired", token)


def _on(at: datetime) -> str:
    return f"on {at:%Y-%m-%d} at {at:%H:%M} UTC"


class RateLimit:
    """A token bucket for each principal, in this process."""

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        """per_second: 0 turns it off."""
        self._rate = per_second
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, name: str) -> None:
        """Raises: ApiError 429 with Retry-After."""
        if not self._rate:
            return
        now = self._clock()
        with self._lock:
            level, at = self._buckets.get(name, (2 * self._rate, now))
            level = min(2 * self._rate, level + (now - at) * self._rate)
            self._buckets[name] = (level - 1 if level >= 1 else level, now)
        if level < 1:
            wait_s = max(1, round((1 - level) / self._rate))
            detail = f"More than {self._rate:g} requests a second; try again in {wait_s} s."
            raise ApiError(429, "rate_limited", detail, headers={"Retry-After": str(wait_s)})
