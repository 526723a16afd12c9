"""fsspec's file system behind a URL, with one try per call and with time limits, so that a call takes a known time.

Each library has retries and pauses of its own, which would multiply ours: 33 s of gcsfs 2026.10 and 83 s of adlfs
2026.8 for one call to a server that is off.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import fsspec

GOOGLE = frozenset({"gs", "gcs"})
AZURE = frozenset({"az", "abfs", "abfss"})
INSTALL = "For s3://, gs:// and az:// install the extras: pip install 'syncnorm[s3,gcs,azure]'."


@dataclass(frozen=True)
class Times:
    """Time limits of one try: to connect, for each piece of an answer, and in all, with a second more for each MiB."""

    connect_s: float
    read_s: float
    call_s: float


def filesystem_at(url: str) -> tuple[Any, str]:
    """The file system of a URL, as its library makes it, and the path in it. Raises: ImportError, ValueError."""
    protocol = url.partition("://")[0]
    if protocol in GOOGLE:
        from gcsfs.core import GCSFileSystem

        return GCSFileSystem(), GCSFileSystem._strip_protocol(url)
    return fsspec.url_to_fs(url)  # type: ignore[no-any-return]


def steady_filesystem_at(url: str, times: Times) -> tuple[Any, str]:
    """The same, with one try per call. Raises: ImportError, ValueError."""
    protocol = url.partition("://")[0]
    # A cached listing would hide files that other hosts write.
    options: dict[str, Any] = {"use_listings_cache": False}
    if protocol == "s3":
        return _s3_at(url, times, options)
    if protocol in GOOGLE:
        return _google_at(url, times, options)
    if protocol in AZURE:
        return _azure_at(url, times, options)
    return fsspec.url_to_fs(url, **options)  # type: ignore[no-any-return]


def _s3_at(url: str, times: Times, options: dict[str, Any]) -> tuple[Any, str]:
    tries = {"retries": {"total_max_attempts": 1}}
    limits = {"connect_timeout": times.connect_s, "read_timeout": times.read_s}
    filesystem, path = fsspec.url_to_fs(url, config_kwargs=limits | tries, **options)
    filesystem.retries = 1  # which no argument sets (s3fs 2026.9)
    return filesystem, path


def _google_at(url: str, times: Times, options: dict[str, Any]) -> tuple[Any, str]:
    import aiohttp

    limits = aiohttp.ClientTimeout(total=None, sock_connect=times.connect_s, sock_read=times.read_s)
    kind = _google_of_one_try()
    return kind(requests_timeout=limits, **options), kind._strip_protocol(url)


@lru_cache
def _google_of_one_try() -> Any:
    """gcsfs without its tries, which no argument sets, nor its ExtendedGcsFileSystem (2026.10): that asks another
    service for the kind of the bucket before each call, with a right of its own, and without our limits."""
    from gcsfs.core import GCSFileSystem

    tried = ("_request", "_get_file_request", "_get_file_concurrent")
    once = {name: inspect.unwrap(getattr(GCSFileSystem, name)) for name in tried}
    return type("GCSFileSystemOfOneTry", (GCSFileSystem,), once)


def _azure_at(url: str, times: Times, options: dict[str, Any]) -> tuple[Any, str]:
    filesystem, path = fsspec.url_to_fs(url, connection_timeout=times.connect_s, read_timeout=times.read_s, **options)
    # Its arguments are for some calls alone (adlfs 2026.8); its clients share one policy and one transport.
    client = filesystem.service_client
    client._config.retry_policy.total_retries = 0
    limits = client._pipeline._transport.connection_config
    limits.timeout, limits.read_timeout = times.connect_s, times.read_s
    return filesystem, path
