"""Answers that Ray, MLflow and receivers of webhooks may give in place of the right one."""

from __future__ import annotations

import copy
import json
import socket
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

from tests.service.poison.extremes import Path
from tests.service.poison.outside import Bend, Handler, HttpResponse

Right = Callable[[], HttpResponse]
_LOGIN = b"<!DOCTYPE html><html><title>Sign in</title><form action=/login></form></html>"
_DROPS = 120
"""Bytes that come one by one, 18 s in all."""
SILENCE_S = 3.0
"""How long a silent server holds a connection; longer than any port of a test waits."""


def page(code: int, content: bytes = _LOGIN, **headers: str) -> Bend:
    """A page of some proxy; the request never arrives."""
    given = {"Content-Type": "text/html"} | {name.replace("_", "-"): value for name, value in headers.items()}

    def bend(handler: Handler, _: Right) -> None:
        handler.send(code, b"" if code in (204, 304) else content, given)

    return bend


def value(code: int, content: Any) -> Bend:
    """JSON of another kind."""
    return page(code, json.dumps(content).encode(), Content_Type="application/json")


def raw(content: bytes) -> Bend:
    """200 with these bytes for JSON."""
    return page(200, content, Content_Type="application/json")


def half(handler: Handler, right: Right) -> None:
    """The request is carried out, and half of the answer comes."""
    code, content = right()
    whole = json.dumps(content).encode()
    handler.send(code, whole[: len(whole) // 2], {"Content-Length": str(len(whole))})
    handler.close_connection = True


def short(handler: Handler, right: Right) -> None:
    """The length is wrong: the rest is taken for the next answer."""
    code, content = right()
    whole = json.dumps(content).encode()
    handler.send(code, whole, {"Content-Length": str(max(1, len(whole) - 1))})
    handler.close_connection = True


def trickle(handler: Handler, right: Right) -> None:
    """A byte now and then, so that no timeout between two bytes is met."""
    code, content = right()
    handler.send(code, b"", {"Content-Length": str(len(json.dumps(content)))})
    whole = json.dumps(content).encode()
    drops = whole[:_DROPS]
    for char in drops:
        if handler.outside.closing.wait(0.15 * _DROPS / len(drops)):
            break
        handler.wfile.write(bytes([char]))
        handler.wfile.flush()
    handler.wfile.write(whole[_DROPS:])
    handler.close_connection = True


def silence(handler: Handler, _: Right) -> None:
    handler.outside.closing.wait(SILENCE_S)
    handler.close_connection = True


def late(handler: Handler, right: Right) -> None:
    """Carried out, and answered when nobody listens any more."""
    code, content = right()
    handler.outside.closing.wait(SILENCE_S)
    handler.send(code, json.dumps(content).encode())


def reset(handler: Handler, right: Right) -> None:
    """Carried out; the connection is reset."""
    right()
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.close_connection = True


def garbage(handler: Handler, _: Right) -> None:
    handler.wfile.write(b"\x00\xff\x16\x03 this is not HTTP\r\n\r\n")
    handler.close_connection = True


def slow(seconds: float) -> Bend:
    """The right answer, after a while."""

    def bend(handler: Handler, right: Right) -> None:
        time.sleep(seconds)
        code, content = right()
        handler.send(code, json.dumps(content).encode())

    return bend


ODD: dict[str, Bend] = {
    "200 HTML": page(200),
    "200 empty": raw(b""),
    "204": page(204),
    "304": page(304),
    "302 to a login": page(302, Location="/login"),
    "301 to itself": page(301, Location="/api/version"),
    "200 {}": value(200, {}),
    "200 null": value(200, None),
    "200 []": value(200, []),
    "200 [null]": value(200, [None]),
    "200 a word": value(200, "ok"),
    "200 a number": value(200, 7),
    "200 true": value(200, True),
    "200 NaN": raw(b"NaN"),
    "200 an error": value(200, {"error": "backend away", "result": False, "data": None}),
    "200 not UTF-8": raw(b'{"a": "caf\xe9"}'),
    "200 torn JSON": raw(b'{"data": {"clusterStatus": '),
    "200 two values": raw(b"{}{}"),
    "200 deep": raw(b"[" * 100_000),
    "200 5000 digits": raw(b"9" * 5000),
    "200 no gzip": page(200, b"no gzip", Content_Encoding="gzip", Content_Type="application/json"),
    "half": half,
    "short": short,
}
"""Neither refused nor away: whoever answers is not who was asked."""
REFUSED: dict[str, Bend] = {
    "400": value(400, {"error_code": "INVALID_PARAMETER_VALUE", "message": "no such thing"}),
    "404": value(404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "gone"}),
    "413": page(413, b"<html>Too large</html>"),
    "422": value(422, {"detail": "bad"}),
}
"""Of one request, by somebody who understood it."""
AWAY: dict[str, Bend] = {
    "401 HTML": page(401),
    "403": value(403, {"error": "permission"}),
    "429": page(429, b"", Retry_After="soon"),
    "500 HTML": page(500),
    "500 {}": value(500, {}),
    "502": page(502),
    "503": page(503, Retry_After="999999999"),
    "504": page(504),
    "599": page(599, b""),
    "reset": reset,
    "garbage": garbage,
}
SLOW: dict[str, Bend] = {"silence": silence, "late": late, "trickle": trickle}
"""Each takes as long as a port waits."""


def leaves(answer: Any) -> Iterator[tuple[str, Bend]]:
    """Bends after which one value after the other of such an answer is of another kind, or missing."""
    kinds: list[tuple[str, Any]]
    kinds = [("null", None), ("text", "odd"), ("-1", -1), ("1e308", 1e308), ("{}", {}), ("[]", []), ("missing", ...)]
    for path in _paths(answer):
        for what, odd in kinds:
            yield f"{'.'.join(map(str, path))}: {what}", _leaf(path, odd)


def _leaf(path: Path, odd: Any) -> Bend:
    def bend(handler: Handler, right: Right) -> None:
        code, content = right()
        handler.send(code, json.dumps(_replaced(content, path, odd)).encode())

    return bend


def _paths(value: Any, path: Path = ()) -> Iterator[Path]:
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _paths(inner, (*path, key))


def _replaced(answer: Any, path: Path, odd: Any) -> Any:
    made = copy.deepcopy(answer)
    target = made
    try:
        for part in path[:-1]:
            target = target[part]
        target[path[-1]]  # whether it is there
    except (KeyError, IndexError, TypeError):
        return made
    if odd is ...:
        del target[path[-1]]
    else:
        target[path[-1]] = odd
    return made
