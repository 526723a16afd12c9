"""Turns failed requests into errors: one class for each way in which a request can fail."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from syncnorm.service.client.addresses import Address, running_here
from syncnorm.service.client.client_errors import (
    ClientError,
    Json,
    NobodyAnswersError,
    NotSyncnormError,
    ProblemError,
    ServiceTimeoutError,
    ServiceUnreachableError,
)

CONNECT_S = 5.0
SAFE = ("GET", "HEAD")
GATEWAY = (502, 503, 504)


@contextmanager
def translated(address: Address, method: str, limit_s: float, silent: str | None = None) -> Iterator[None]:
    """Turns httpx's errors into ours. silent: the class for a timeout after an answer had begun."""
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise NobodyAnswersError(_unreachable(address, error)) from error
    except httpx.TimeoutException as error:
        raise ServiceTimeoutError(silent or _slow(address, method, limit_s)) from error
    except httpx.RemoteProtocolError as error:
        if "disconnected" in str(error) or "closed" in str(error):
            raise ServiceUnreachableError(_lost(address, method, error)) from error
        raise _foreign(address, str(error)) from error
    except httpx.TransportError as error:
        raise ServiceUnreachableError(_lost(address, method, error)) from error
    except (httpx.DecodingError, httpx.InvalidURL) as error:
        raise _foreign(address, str(error)) from error


def refused(address: Address, answer: httpx.Response) -> ClientError:
    """An answer other than 2xx as an error."""
    if answer.is_redirect:
        to = answer.headers.get("location", "another address")
        return NotSyncnormError(f"{address.url} redirects to {to[:200]}. Set SYNCNORM_URL to where the service is.")
    if problem := _problem(answer):
        return ProblemError(problem, _retry_after_s(answer))
    if answer.status_code in (401, 403):
        detail = f"{address.url} answered {answer.status_code}, but not as syncnorm does. A proxy may require a login."
        return ProblemError({"status": answer.status_code, "code": "forbidden", "detail": detail})
    if answer.status_code in GATEWAY:
        what = f"A gateway at {address.url} answered {answer.status_code}"
        if answer.status_code == 504:
            return ServiceTimeoutError(f"{what}: timed out while it waited for the service. Try again.")
        return ServiceUnreachableError(f"{what}: it can't reach the service.")
    return not_syncnorm(address, answer)


def not_syncnorm(address: Address, answer: httpx.Response, *, read: bool = True) -> NotSyncnormError:
    """An answer that syncnorm never gives. read: whether its body was read."""
    kind = answer.headers.get("content-type", "an answer without a Content-Type").split(";")[0]
    excerpt = " ".join(answer.text[:2000].split())[:120] if read else ""
    gave = f"{answer.request.method} {answer.request.url.path} gave {answer.status_code} {kind}"
    return _foreign(address, f"{gave}: {excerpt}" if excerpt else gave)


def _foreign(address: Address, gave: str) -> NotSyncnormError:
    return NotSyncnormError(f"The server at {address.url} isn't syncnorm: {gave}. Check {address.source}.")


def _unreachable(address: Address, error: httpx.TransportError) -> str:
    here = running_here()
    if here is not None and here.url != address.url:
        advice = f"The service of {here.source} is at {here.url}: set SYNCNORM_URL to it, or unset it."
    elif address.source == "SYNCNORM_URL":
        advice = "Check SYNCNORM_URL, or start a service with `syncnorm serve`."
    else:
        advice = "Start one with `syncnorm serve`, or set SYNCNORM_URL."
    return f"No service answers at {address.url} ({_reason(error)}). {advice}"


def _slow(address: Address, method: str, limit_s: float) -> str:
    done = "" if method in SAFE else "It may still carry out the request: check before you repeat it. "
    return (
        f"Timed out after {limit_s:g} s: {address.url} accepted the request and did not answer. It may be busy. {done}"
        f"SYNCNORM_TIMEOUT={2 * limit_s:g} waits longer."
    )


def _lost(address: Address, method: str, error: httpx.TransportError) -> str:
    done = "" if method in SAFE else " Whether the request was carried out is unknown: check before you repeat it."
    return f"The connection to {address.url} was lost ({_reason(error)}).{done}"


def _reason(error: httpx.TransportError) -> str:
    """The operating system's message, without the number in brackets."""
    if isinstance(error, httpx.ConnectTimeout):
        return f"no connection within {CONNECT_S:g} s"
    text = str(error) or type(error).__name__
    if "SSL" in text or isinstance(error.__cause__, ssl.SSLError):
        return f"it does not speak https as expected: {text}"
    return text.rpartition("] ")[2]


def _problem(answer: httpx.Response) -> Json | None:
    if not answer.headers.get("content-type", "").startswith("application/problem+json"):
        return None
    try:
        content = answer.json()
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _retry_after_s(answer: httpx.Response) -> float | None:
    text = answer.headers.get("retry-after", "")
    return float(text) if text.isascii() and text.isdigit() else None
