"""Validates what goes into a request before it is sent: addresses, tokens, timeouts, ids."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, quote, urlsplit

from syncnorm.service.client.client_errors import ServiceUnreachableError, UsageError

DEFAULT_URL = "http://127.0.0.1:8000"
_LONGEST_PART = 255
_NEVER_IN_A_PART = re.compile(r"[\x00-\x20\x7f-\xa0/\\?#%]")
_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")
_TOKEN = re.compile(r"^[\x21-\x7e]+$")


@dataclass(frozen=True)
class Address:
    """url: without a slash or /v1 at the end. source: the variable or file that names it, for messages."""

    url: str
    source: str
    found: bool = False
    """Written by a service on this host, which may restart on another port."""


def find_service(given: str | None = None, environ: Mapping[str, str] = os.environ) -> Address:
    """The URL given, SYNCNORM_URL, the service of this host's state folder, or the default.

    If SYNCNORM_HOME names a state folder, only the service on it is used, never another one on the default port.
    Raises: UsageError for an invalid address; ServiceUnreachableError if no service runs on SYNCNORM_HOME.
    """
    if given is not None:
        return Address(normalized(given, "the URL"), "the URL given")
    if text := environ.get("SYNCNORM_URL", "").strip():
        return Address(normalized(text, "SYNCNORM_URL"), "SYNCNORM_URL")
    if here := running_here(environ):
        return here
    if home := environ.get("SYNCNORM_HOME"):
        raise ServiceUnreachableError(
            f"No service runs on {home} (SYNCNORM_HOME). Start one with `syncnorm serve`, or set SYNCNORM_URL."
        )
    return Address(DEFAULT_URL, "the default address")


def running_here(environ: Mapping[str, str] = os.environ) -> Address | None:
    """The address that a service on this host wrote into its state folder."""
    file = Path(environ.get("SYNCNORM_HOME") or ".syncnorm").expanduser() / "service.json"
    try:
        return Address(normalized(json.loads(file.read_text())["url"], str(file)), str(file), found=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # half written, or written by another program
        return None


def normalized(text: str, what: str) -> str:
    """An address as people write it, made into the URL that paths are added to.

    >>> normalized("localhost:8000/v1/", "SYNCNORM_URL")
    'http://localhost:8000'

    Raises: UsageError.
    """
    text = text.strip()
    if re.search(r"[\x00-\x20\x7f]", text):
        raise UsageError(f"{what} must be an address without spaces, such as {DEFAULT_URL}; got {text!r}.")
    url = text if _SCHEME.match(text) else f"http://{text}"
    parts = _split(url, what)
    if parts.scheme not in ("http", "https"):
        raise UsageError(f"{what} must begin with http:// or https://, got {text!r}.")
    if not parts.hostname:
        raise UsageError(f"{what} must name a host, such as {DEFAULT_URL}; got {text!r}.")
    if parts.username is not None or parts.query or parts.fragment:
        raise UsageError(
            f"{what} must be a plain address such as {DEFAULT_URL}, without a user, a password, ? and #. "
            "Give your token in SYNCNORM_TOKEN."
        )
    return f"{parts.scheme}://{parts.netloc}{_without_page(parts.path)}"


def _split(url: str, what: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port, parts.netloc.encode("idna" if not parts.netloc.isascii() else "ascii")
    except ValueError as error:
        raise UsageError(
            f"{what} can't be read as an address: {error}. A port is a number from 1 to 65535; got {url!r}."
        ) from error
    if parts.port == 0 or parts.netloc.endswith(":"):
        raise UsageError(f"{what} must have a port from 1 to 65535 after the colon, got {url!r}.")
    return parts


def _without_page(path: str) -> str:
    """The path in front of the API, where a proxy serves it under one; `/v1` and `/docs` are pages of the service."""
    return re.sub(r"(/v1|/docs)?/*$", "", path.rstrip("/"))


def checked_token(token: str | None, environ: Mapping[str, str] = os.environ) -> str | None:
    """The token given, or SYNCNORM_TOKEN; None: no token. It never appears in a message. Raises: UsageError if no
    header can hold it."""
    found = (token if token is not None else environ.get("SYNCNORM_TOKEN", "")).strip()
    if not found:
        return None
    if not _TOKEN.match(found):
        where = next(at for at, mark in enumerate(found, start=1) if not _TOKEN.match(mark))
        what = "SYNCNORM_TOKEN" if token is None else "The token"
        raise UsageError(
            f"{what} must be one word of ASCII characters, as `syncnorm token create` prints it; "
            f"character {where} of {len(found)} is another. Copy it again."
        )
    return found


def timeout_s(default: float, environ: Mapping[str, str] = os.environ) -> float:
    """SYNCNORM_TIMEOUT, or the default.

    Raises: UsageError.
    """
    text = environ.get("SYNCNORM_TIMEOUT", "").strip()
    if not text:
        return default
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 86_400:
        raise UsageError(f"SYNCNORM_TIMEOUT must be seconds above 0 and at most 86400, got {text!r}.")
    return seconds


def api_path(*parts: str) -> str:
    """`/v1/…` with each part quoted, so that no id can lead to another resource.

    >>> api_path("jobs", "job_1", "cancel")
    '/v1/jobs/job_1/cancel'

    Raises: UsageError for an empty part, or one that no id or name may be.
    """
    return "/v1/" + "/".join(quote(_checked(part), safe="") for part in parts)


def _checked(part: str) -> str:
    if not isinstance(part, str) or not part.strip():
        raise UsageError("An id or a name must not be empty. Is a variable of your shell unset?")
    if len(part) > _LONGEST_PART:
        raise UsageError(f"An id or a name must have at most {_LONGEST_PART} characters, got {len(part)}.")
    if part in (".", "..") or _NEVER_IN_A_PART.search(part):
        raise UsageError(
            f"An id or a name must not hold spaces, control characters or any of / \\ ? # %, nor be dots; got {part!r}."
        )
    try:
        part.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"An id or a name must be text, got {part!r}.") from error
    return part
