"""HTTP to a system outside, with limits on the time of a whole call and on the size of the answer.

A timeout of httpx covers a single read: a server that sends a byte now and then would hold a call for hours. So calls
run on an event loop of their own, where a whole call can be cancelled, including the name look-up.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import httpx
from pydantic import TypeAdapter, ValidationError

from syncnorm.service.backend_errors import RefusedError, UnexpectedAnswerError, UnreachableError

T = TypeVar("T")

TOTAL_S = 10.0
MOST_BYTES = 16 * 2**20
_EXCERPT = 300


@dataclass(frozen=True)
class HttpRequest:
    """One request. path: below the address of the port, or a whole URL."""

    method: str
    path: str
    params: Mapping[str, Any] | None = None
    json: Any = None
    content: bytes | None = None
    headers: Mapping[str, str] | None = None


@dataclass(frozen=True)
class HttpResponse:
    """A whole answer, whatever its status. source: the server, for messages."""

    source: str
    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300

    @property
    def is_page(self) -> bool:
        """Whether it is HTML, which none of our ports sends: a proxy or a login page answered."""
        return "html" in self.headers.get("content-type", "") or self.content.lstrip()[:1] == b"<"

    @property
    def excerpt(self) -> str:
        """The end of its text, where a traceback says what happened."""
        return self.content.decode(errors="replace").strip()[-_EXCERPT:]

    def parsed(self, kind: TypeAdapter[T]) -> T:
        """Its content as the expected type. Raises: UnexpectedAnswerError."""
        try:
            return kind.validate_json(self.content)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"])) or "the body"
            raise UnexpectedAnswerError(
                f"{self.source} answered {self.status} in an unexpected form: {where}: {first['msg']} "
                f"({self.excerpt[:80]!r}). Check that no proxy or login page answers instead of it."
            ) from error


class HttpClient:
    """One system outside. Every call raises UnreachableError or UnexpectedAnswerError, within its limits."""

    def __init__(
        self,
        name: str,
        url: str = "",
        *,
        headers: Mapping[str, str] | None = None,
        auth: tuple[str, str] | None = None,
        total_s: float = TOTAL_S,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """name: for messages. total_s: for a whole call. transport: for tests."""
        self.url = url
        self._name = name
        self._total_s = total_s
        self._http = httpx.AsyncClient(
            base_url=url,
            # Compressed, a small answer may become any size.
            headers={"Accept-Encoding": "identity", **(headers or {})},
            auth=auth,
            timeout=total_s,
            trust_env=False,
            verify=_certificates(),
            transport=transport,
        )

    def ask(self, call: HttpRequest, *, total_s: float | None = None, most_bytes: int = MOST_BYTES) -> HttpResponse:
        """The answer to one call, whatever its status.

        Raises: UnreachableError; OddAnswerError for a redirect and for an oversized body; RefusedError for a call that
        can't be sent.
        """
        return _on_loop(self._ask(call, total_s or self._total_s, most_bytes))

    def ask_all(
        self, calls: Sequence[HttpRequest], *, total_s: float | None = None
    ) -> list[HttpResponse | UnreachableError]:
        """The answers to several concurrent calls, in order, within the time limit of one."""

        async def gathered() -> list[HttpResponse | UnreachableError]:
            # httpx opens up to 100 connections; further calls wait.
            return list(await asyncio.gather(*(self._settled(call, total_s or self._total_s) for call in calls)))

        return _on_loop(gathered())

    def close(self) -> None:
        _on_loop(self._http.aclose())

    async def _settled(self, call: HttpRequest, total_s: float) -> HttpResponse | UnreachableError:
        try:
            return await self._ask(call, total_s, MOST_BYTES)
        except UnreachableError as error:
            return error

    async def _ask(self, call: HttpRequest, total_s: float, most_bytes: int) -> HttpResponse:
        source = f"{self._name} at {self.url or httpx.URL(call.path).host}"
        try:
            async with asyncio.timeout(total_s):
                return await self._exchange(source, call, most_bytes)
        except TimeoutError as error:
            raise UnreachableError(f"{source} did not answer {call.method} within {total_s:g} s") from error
        except (ValueError, TypeError) as error:  # lone surrogates and NaN, which JSON can't hold
            raise RefusedError(f"could not send {call.method} {call.path} to {source}: {error}") from error
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise UnreachableError(f"{source} can't be reached: {str(error) or type(error).__name__}") from error

    async def _exchange(self, source: str, call: HttpRequest, most_bytes: int) -> HttpResponse:
        request = self._http.build_request(
            call.method, call.path, params=call.params, json=call.json, content=call.content, headers=call.headers
        )
        response = await self._http.send(request, stream=True)
        try:
            if response.is_redirect:
                target = response.headers.get("location", "")[:200]
                raise UnexpectedAnswerError(f"{source} redirects to {target}, which is not followed")
            content = bytearray()
            async for chunk in response.aiter_raw():
                content += chunk
                if len(content) > most_bytes:
                    raise UnexpectedAnswerError(f"{source} sent more than {most_bytes} bytes; the rest was not read")
            return HttpResponse(source, response.status_code, response.headers, bytes(content))
        finally:
            await response.aclose()


@cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="http", daemon=True).start()
    return loop


@cache
def _certificates() -> ssl.SSLContext:
    """Read once for all clients, for that takes some 20 ms."""
    return httpx.create_ssl_context(trust_env=False)


def _on_loop(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run_coroutine_threadsafe(work, _loop()).result()
