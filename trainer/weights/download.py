"""Fetches a file of weights by its URL."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import httpx

from syncnorm.trainer.storage import data_urls
from syncnorm.trainer.storage.filesystems import INSTALL, filesystem_at

_TRIES, _PAUSE_S = 3, 2.0
_TIMES = httpx.Timeout(30.0, connect=10.0)


def download(url: str, target: Path, where: str, allowed: Sequence[str] | None) -> None:
    """Fetch `url` to `target`. allowed: prefixes that it and what it redirects to must lie under; None: any.

    Raises: ValueError naming `where`, and what went wrong.
    """
    _require_allowed(url, where, allowed)
    if url.startswith(("http://", "https://")):
        _fetch_over_http(url, target, where, allowed)
        return
    try:
        filesystem, path = filesystem_at(url)
        filesystem.get_file(path, str(target))
    except FileNotFoundError as error:
        raise ValueError(f"{where}: there is no file {url}, or its bucket does not exist.") from error
    except ImportError as error:
        raise ValueError(f"{where}: {url} can't be read on this worker: {error}. {INSTALL}") from error
    except Exception as error:  # each of fsspec's file systems has its own
        raise ValueError(f"{where}: {url} can't be read: {type(error).__name__}: {error}") from error


def _fetch_over_http(url: str, target: Path, where: str, allowed: Sequence[str] | None) -> None:
    def check(request: httpx.Request) -> None:
        _require_allowed(str(request.url), where, allowed, redirected_from=url)

    with httpx.Client(follow_redirects=True, timeout=_TIMES, event_hooks={"request": [check]}) as client:
        for left in reversed(range(_TRIES)):
            try:
                with client.stream("GET", url) as answer:
                    answer.raise_for_status()
                    with target.open("wb") as file:
                        for piece in answer.iter_bytes():
                            file.write(piece)
            except httpx.HTTPStatusError as error:
                status = error.response.status_code
                if left == 0 or status < 500:
                    raise ValueError(f"{where}: {url} answers {status} {error.response.reason_phrase}.") from error
            except httpx.HTTPError as error:
                if left == 0:
                    text = str(error) or type(error).__name__
                    raise ValueError(
                        f"{where}: {url} can't be reached from this worker: {text}. Without internet, put the file "
                        "where every worker sees it and name its path."
                    ) from error
            else:
                return
            time.sleep(_PAUSE_S)


def _require_allowed(url: str, where: str, allowed: Sequence[str] | None, redirected_from: str | None = None) -> None:
    if allowed is None:
        return
    is_redirect = redirected_from not in (None, url)
    wrong = data_urls.redirect_problem(url, allowed) if is_redirect else data_urls.problem(url, allowed)
    if wrong is not None:
        via = f", which {redirected_from} redirects to," if is_redirect else ""
        raise ValueError(f"{where}: {url}{via} {wrong}.")
