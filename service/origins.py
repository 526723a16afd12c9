"""Which origins a request may come from: a web page that a user happens to open may not use this service. Pure.

A browser lets any page send requests to this host. Three headers tell such a request apart, and the page can change
none of them: the name that the browser asked for (`Host`; a page that points its own name at this address can't hide
it), the page's own address (`Origin`), and what the browser says about the two (`Sec-Fetch-Site`).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

from starlette.datastructures import Headers

_AUTHORITY = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(?::([0-9]{0,5}))?")
_DEFAULT_PORTS = {"http": 80, "https": 443}
_SAFE = ("GET", "HEAD", "OPTIONS")
_JSON, _ZIP = "application/json", "application/zip"
FORM = "application/x-www-form-urlencoded"
SIGN_IN, SIGN_OUT = "/sign-in", "/sign-out"
"""The only paths that take a form, which a page of any origin can send: nothing is changed there but a cookie."""
_SHOWN = 200
"""Characters of a header that a message quotes."""

Authority = tuple[str, int | None]
"""A host in lower case, and its port where one was given."""


@dataclass(frozen=True)
class Refusal:
    """Why a request is refused."""

    status: int
    code: str
    detail: str


@dataclass(frozen=True)
class Head:
    """The parts of a request that are checked. address: the one of this host that it came in on, if known."""

    method: str
    path: str
    scheme: str
    address: str
    headers: Headers


@dataclass(frozen=True)
class Trusted:
    """The names and origins of this service. A port of None in `names` stands for every port."""

    names: frozenset[Authority]
    endings: tuple[str, ...] = ()
    """`.example.org` for every name below it."""
    origins: frozenset[tuple[str, Authority]] = frozenset()

    @classmethod
    def from_settings(cls, bound: Iterable[str], urls: Iterable[str | None], allowed: Iterable[str]) -> Self:
        """bound: hosts it listens on. urls: where it is reached, by every port. allowed: see `read_pattern`."""
        given = [url for url in urls if url]
        patterns = [read_pattern(text) for text in allowed]
        names = {(url_authority(url)[0], None) for url in given} | {_read(_bracketed(host)) for host in bound}
        return cls(
            names=frozenset(one for one in (*names, *patterns) if one is not None and not _is_pattern(one)),
            endings=tuple(host for host, _ in filter(_is_pattern, patterns)),
            origins=frozenset(origin for url in given if (origin := _origin(url))),
        )

    def has(self, authority: Authority, address: str) -> bool:
        """Whether this is a name of ours: loopback, one from the settings, or the address the request came in on."""
        host, port = authority
        ports = (None, port) if port else (None, *_DEFAULT_PORTS.values())
        return (
            _is_loopback(host)
            or not self.names.isdisjoint((host, one) for one in ports)
            or host.endswith(self.endings)
            or (_ip(host) is not None and _ip(host) == _ip(_bracketed(address)))
        )


def read_pattern(text: str) -> Authority:
    """An entry of SYNCNORM_ALLOWED_HOSTS: a name or address, with or without a port; `.example.org` for all below.

    Raises: ValueError.
    """
    ending = text.removeprefix("*") if text.startswith("*.") else text
    read = _read(ending)
    if read is None or ending == "." or (ending.startswith(".") and read[1] is not None):
        raise ValueError(
            "SYNCNORM_ALLOWED_HOSTS must list host names such as train.example.org, gpu7:8000 or *.example.org, "
            f"got {text!r}. Write names alone, without http:// and paths, separated by commas."
        )
    return read


def url_authority(url: str) -> Authority:
    """Host and port of an http or https URL. Raises: ValueError."""
    parts = urlsplit(url)
    read = _read(parts.netloc)
    if parts.scheme not in _DEFAULT_PORTS or read is None:
        raise ValueError(f"must be an address such as https://train.example.org, got {url!r}")
    return read


def find_refusal(head: Head, trusted: Trusted) -> Refusal | None:
    """Why a request can't be from a user of this service; None if it can."""
    return _foreign_host(head, trusted) or _foreign_origin(head, trusted) or _foreign_page(head)


def find_wrong_body(head: Head) -> Refusal | None:
    """Bodies must be JSON and packages zips, with that Content-Type: a page can send all other types without asking."""
    if head.method in _SAFE:
        return None
    wanted = _body_type(head.path)
    given = head.headers.getlist("content-type")
    if (not given and not _has_body(head.headers)) or (len(given) == 1 and _is_of_type(given[0], wanted)):
        return None
    got = ", ".join(given)[:_SHOWN] or "none"
    detail = f"The Content-Type must be {wanted}, got {got}. Send the header `Content-Type: {wanted}`."
    return Refusal(415, "unsupported_media_type", detail)


def _body_type(path: str) -> str:
    if path in (SIGN_IN, SIGN_OUT):
        return FORM
    return _ZIP if path.startswith("/v1/packages/") else _JSON


def _foreign_host(head: Head, trusted: Trusted) -> Refusal | None:
    hosts = head.headers.getlist("host")
    if not hosts and head.path == "/healthz":
        return None  # HTTP/1.0 checks of load balancers; a browser always sends one
    if len(hosts) != 1:
        return Refusal(400, "bad_host", f"A request must have one Host header, got {len(hosts)}.")
    read = _read(hosts[0].strip(" \t"))
    if read is not None and trusted.has(read, head.address):
        return None
    detail = (
        f"{hosts[0][:_SHOWN]!r} is not a name of this service. If it should be one, the operator must add it to "
        "SYNCNORM_ALLOWED_HOSTS, or to SYNCNORM_PUBLIC_URL if browsers use it."
    )
    return Refusal(403, "foreign_host", detail)


def _foreign_origin(head: Head, trusted: Trusted) -> Refusal | None:
    own = trusted.origins | {_origin(f"{head.scheme}://{host}") for host in head.headers.getlist("host")}
    for text in head.headers.getlist("origin"):
        origin = _origin(text)
        if origin is None or origin not in own:
            detail = (
                f"Pages of {text[:_SHOWN]!r} may not use this service. If this is its own address behind a proxy, the "
                "operator must set SYNCNORM_PUBLIC_URL to it."
            )
            return Refusal(403, "foreign_origin", detail)
    return None


def _foreign_page(head: Head) -> Refusal | None:
    """Requests without an Origin: pictures, frames, scripts and the like of another page, also of another port of this
    host."""
    sites = set(head.headers.getlist("sec-fetch-site"))
    if sites <= {"same-origin", "none"} or _is_opened_by_a_person(head):
        return None
    return Refusal(403, "cross_site", "Other web pages may link to this service, but not load anything from it.")


def _is_opened_by_a_person(head: Head) -> bool:
    """A link that a person followed into a window of its own: the page it came from sees nothing of the answer."""
    mode, target = head.headers.get("sec-fetch-mode"), head.headers.get("sec-fetch-dest")
    return head.method in ("GET", "HEAD") and mode == "navigate" and target == "document"


def _is_of_type(given: str, wanted: str) -> bool:
    kind, *parameters = (part.strip().lower() for part in given.split(";"))
    charsets = [text.partition("=")[2].strip('"') for text in parameters if text.startswith("charset=")]
    return kind == wanted and all(charset in ("utf-8", "utf8") for charset in charsets)


def _has_body(headers: Headers) -> bool:
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"


def _origin(text: str) -> tuple[str, Authority] | None:
    """Scheme, host and port of an origin or URL; None for `null` and invalid ones."""
    try:
        host, port = url_authority(text)
    except ValueError:
        return None
    scheme = urlsplit(text).scheme
    return scheme, (host, port or _DEFAULT_PORTS[scheme])


def _read(authority: str) -> Authority | None:
    """None for an invalid host."""
    found = _AUTHORITY.fullmatch(authority.lower())
    if found is None or (found[1].startswith("[") and _ip(found[1]) is None):
        return None
    return found[1].removesuffix(".") or found[1], int(found[2]) if found[2] else None


def _is_pattern(authority: Authority) -> bool:
    return authority[0].startswith(".")


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host.lower()


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The IP address of a host, an IPv4 one also if written as IPv6; None for a name."""
    try:
        if not host.startswith("["):
            return ipaddress.IPv4Address(host)
        address = ipaddress.IPv6Address(host[1:-1])
    except ValueError:
        return None
    return address.ipv4_mapped or address


def _is_loopback(host: str) -> bool:
    address = _ip(host)
    return host == "localhost" if address is None else address.is_loopback
