"""Requests that a web page can have a browser send, header by header: none of them is answered, and nothing happens."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import socket
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from syncnorm.service.settings import Settings
from tests.helpers.service.api import SPEC, api, on_a_socket
from tests.helpers.service.world import World

CANARY = "only-for-its-owner"
COMMAND = SPEC | {"model": {"class_path": "os.system", "init_args": {"command": "id"}}}


@dataclass(frozen=True)
class Running:
    """A service as `serve` has it by default, no tokens and code allowed, on a port, with a job in it."""

    port: int
    world: World
    job: str
    http: httpx.Client


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with (
        api(tmp_path_factory.mktemp("home"), allow_code=True) as (client, world),
        on_a_socket(client.app) as port,
        httpx.Client(base_url=f"http://127.0.0.1:{port}") as http,
    ):
        yield Running(port, world, http.post("/v1/jobs", json=SPEC | {"labels": {"canary": CANARY}}).json()["id"], http)


def package() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("evil/__init__.py", "x = 1")
    return file.getvalue()


def operations(job: str) -> list[tuple[str, str, bytes, str]]:
    """(method, path, body, its proper type): everything worth a try, also what answers without a token."""
    spec, zipped = json.dumps(COMMAND).encode(), package()
    return [
        ("POST", "/v1/jobs", spec, "application/json"),
        ("POST", "/v1/jobs?dry_run=true", spec, "application/json"),
        ("POST", "/v1/studies", json.dumps({"name": "s", "base": COMMAND, "grid": {}}).encode(), "application/json"),
        ("POST", f"/v1/jobs/{job}/pause", b"", ""),
        ("POST", f"/v1/jobs/{job}/cancel", b"", ""),
        ("PATCH", f"/v1/jobs/{job}", b'{"priority": 9}', "application/json"),
        ("DELETE", f"/v1/jobs/{job}", b"", ""),
        ("PUT", f"/v1/packages/{hashlib.sha256(zipped).hexdigest()}", zipped, "application/zip"),
        ("PUT", "/v1/secrets/EVIL", b'{"value": "x"}', "application/json"),
        ("POST", "/v1/tokens", b'{"owner": "evil", "scopes": ["admin"]}', "application/json"),
        ("POST", f"/internal/v1/attempts/{job}-1/heartbeat", b'{"fence": "0"}', "application/json"),
        *(
            ("GET", path, b"", "")
            for path in (
                *("/", "/docs", "/redoc", "/docs/assets/favicon.png", "/openapi.json", "/metrics", "/readyz", "/nope"),
                *("/v1/jobs", f"/v1/jobs/{job}", f"/v1/jobs/{job}/events", f"/v1/jobs/{job}/logs", "/v1/secrets"),
            )
        ),
        ("HEAD", f"/v1/jobs/{job}", b"", ""),
        ("OPTIONS", "/v1/jobs", b"", ""),
    ]


OWN = "127.0.0.1:{port}"
FOREIGN = {
    "rebound name": {"Host": "evil.example:{port}"},
    "rebound name, its own origin": {"Host": "evil.example:{port}", "Origin": "http://evil.example:{port}"},
    "rebound name that says same-origin": {"Host": "evil.example:{port}", "Sec-Fetch-Site": "same-origin"},
    "rebound name, forwarded": {"Host": "evil.example", "X-Forwarded-Host": OWN, "Forwarded": "host=127.0.0.1"},
    "looks like an address": {"Host": "127.0.0.1.evil.example"},
    "looks like a private address": {"Host": "10.attacker.example"},
    "begins as loopback": {"Host": "localhost.evil.example:{port}"},
    "ends as loopback": {"Host": "evil-localhost"},
    "below loopback": {"Host": "evil.localhost:{port}"},
    "user before the name": {"Host": "127.0.0.1:{port}@evil.example"},
    "name behind a user": {"Host": "evil.example@127.0.0.1:{port}"},
    "two ports": {"Host": "127.0.0.1:{port}:80"},
    "two names": {"Host": "127.0.0.1, evil.example"},
    "the address of every interface": {"Host": "0.0.0.0:{port}"},
    "short for loopback": {"Host": "127.1:{port}"},
    "loopback as one number": {"Host": "2130706433"},
    "loopback in octal": {"Host": "0177.0.0.1"},
    "IPv4 in brackets": {"Host": "[127.0.0.1]:{port}"},
    "IPv6 of somebody else": {"Host": "[2001:db8::1]:{port}"},
    "IPv6 with a zone": {"Host": "[::1%25lo]:{port}"},
    "a path in the name": {"Host": "evil.example/127.0.0.1"},
    "no ASCII": {"Host": "l\xf6calhost"},
    "no name": {"Host": ""},
    "only a port": {"Host": ":{port}"},
    "another site": {"Origin": "https://evil.example"},
    "another port of this host": {"Origin": "http://127.0.0.1:9999"},
    "another name of this host": {"Origin": "http://localhost:{port}"},
    "another scheme": {"Origin": "https://127.0.0.1:{port}"},
    "no port": {"Origin": "http://127.0.0.1"},
    "sandboxed frame, data: or file:": {"Origin": "null"},
    "empty origin": {"Origin": ""},
    "extension": {"Origin": "chrome-extension://abcdefghijklmnop"},
    "our origin as a user": {"Origin": "http://127.0.0.1:{port}@evil.example"},
    "our origin and another": {"Origin": "http://127.0.0.1:{port}, http://evil.example"},
    "our origin as a path": {"Origin": "http://evil.example/http://127.0.0.1:{port}"},
    "fetch of another site": {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "empty"},
    "fetch of another port": {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"},
    "picture": {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"},
    "script": {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "script"},
    "frame": {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"},
    "plug-in": {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "embed"},
    "a site that says nothing more": {"Sec-Fetch-Site": "cross-site"},
    "a site of a new kind": {"Sec-Fetch-Site": "other-site", "Sec-Fetch-Mode": "cors"},
    "a socket": {"Origin": "http://evil.example", "Connection": "Upgrade", "Upgrade": "websocket"},
    "question before the request": {
        "Origin": "http://evil.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Private-Network": "true",
    },
}


def filled(headers: dict[str, str], port: int) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.format(port=port).encode("latin-1")) for name, value in headers.items()]


def state(running: Running) -> tuple[Any, ...]:
    """Everything that such a request could have changed."""
    listed = [running.http.get(f"/v1/{name}").json()["items"] for name in ("jobs", "studies", "secrets", "tokens")]
    return *listed, sorted(path for path in running.world.folder.rglob("*") if path.suffix == ".zip")


def attack(running: Running, headers: dict[str, str], operations: list[tuple[str, str, bytes, str]]) -> None:
    """Send each operation as its user would, but for these headers; it must be refused and change nothing."""
    before = state(running)

    for method, path, body, kind in operations:
        sent = {"Host": OWN} | ({"Content-Type": kind} if kind else {}) | headers
        answer = running.http.request(method, path, content=body, headers=filled(sent, running.port))

        where = (method, path, answer.status_code, answer.text[:200])
        # A parser that has seen `Upgrade` may take no further request of that connection.
        assert answer.status_code == 403 or (answer.status_code == 400 and "Upgrade" in headers), where
        assert method == "HEAD" or answer.headers["content-type"] == "application/problem+json", where
        assert CANARY not in answer.text, where
        assert not [key for key in answer.headers if key.startswith("access-control-")], where
    assert state(running) == before


@pytest.mark.parametrize("name", FOREIGN)
def test_request_of_a_foreign_page_is_refused_and_changes_nothing(running: Running, name: str) -> None:
    submit, _, _, _, cancel, *_, read, _ = operations(running.job)

    attack(running, FOREIGN[name], [submit, cancel, read])


@pytest.mark.parametrize("name", ["rebound name", "another port of this host", "a site that says nothing more"])
def test_every_operation_refuses_a_foreign_page(running: Running, name: str) -> None:
    attack(running, FOREIGN[name], operations(running.job))


def test_refusal_names_the_setting_that_allows_the_name(running: Running) -> None:

    host = running.http.get("/v1/jobs", headers={"Host": "gpu7:8000"}).json()
    origin = running.http.get("/v1/jobs", headers={"Origin": "https://norm.example.org"}).json()

    assert (host["code"], origin["code"]) == ("foreign_host", "foreign_origin")
    assert "'gpu7:8000' is not a name of this service" in host["detail"]
    assert "SYNCNORM_ALLOWED_HOSTS" in host["detail"]
    assert "SYNCNORM_PUBLIC_URL" in origin["detail"]
    assert host["request_id"].startswith("req_")


FORMS = [
    "text/plain",
    "text/plain;charset=UTF-8",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=x",
]
OTHER_TYPES = [
    *("text/plain", "text/plain;charset=UTF-8", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"),
    *("text/json", "application/jsonx", "application/json, text/plain", "text/plain; application/json", "*/*"),
    *("application/merge-patch+json", "application/json; charset=latin-1", "application/octet-stream", "json"),
]


@pytest.mark.parametrize("kind", ["", *OTHER_TYPES])
def test_body_of_another_type_is_refused_wherever_it_is_sent(running: Running, kind: str) -> None:
    before = state(running)

    for method, path, body, proper in operations(running.job):
        if method in ("GET", "HEAD", "OPTIONS") or not (kind or body):
            continue
        headers = {"Content-Type": kind} if kind else {}
        answer = running.http.request(method, path, content=body, headers=headers)

        assert answer.status_code == 415, (method, path)
        assert (
            f"The Content-Type must be {proper or 'application/json'}, got {kind or 'none'}" in answer.json()["detail"]
        )
    assert state(running) == before


def test_a_type_given_twice_is_refused(running: Running) -> None:
    headers = [("Content-Type", "application/json"), ("Content-Type", "text/plain")]

    assert running.http.post("/v1/jobs", content=b"{}", headers=headers).status_code == 415


@pytest.mark.parametrize(
    "kind", ["application/json", "Application/JSON; charset=utf-8", 'application/json;charset="UTF-8"']
)
def test_json_is_taken_however_it_is_written(running: Running, kind: str) -> None:

    answer = running.http.post("/v1/jobs", content=b"{}", headers={"Content-Type": kind})

    assert answer.status_code == 422  # read, and found incomplete


LINK = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
ALLOWED: dict[str, dict[str, str]] = {
    "program": {},
    "localhost": {"Host": "localhost:{port}"},
    "capital letters": {"Host": "LocalHost:{port}"},
    "dot at the end": {"Host": "localhost.:{port}"},
    "a port of a tunnel": {"Host": "localhost:18000"},
    "another loopback address": {"Host": "127.8.9.10:{port}"},
    "IPv6": {"Host": "[::1]:{port}"},
    "IPv6 at length": {"Host": "[0:0:0:0:0:0:0:1]:{port}"},
    "own page": {"Origin": "http://127.0.0.1:{port}", "Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"},
    "own page, written large": {"Origin": "HTTP://127.0.0.1:{port}"},
    "typed in": {"Sec-Fetch-Site": "none"} | LINK,
    "link on another page": {
        "Sec-Fetch-Site": "cross-site",
        "Sec-Fetch-Mode": "navigate",
        "Sec-Fetch-Dest": "document",
    },
    "link on MLflow's page": {
        "Sec-Fetch-Site": "same-site",
        "Sec-Fetch-Mode": "navigate",
        "Sec-Fetch-Dest": "document",
    },
}


@pytest.mark.parametrize("name", ALLOWED)
def test_users_are_answered(running: Running, name: str) -> None:

    for path in (
        "/docs",
        "/openapi.json",
        f"/v1/jobs/{running.job}",
        f"/v1/jobs/{running.job}/explain",
        "/metrics",
        "/healthz",
    ):
        answer = running.http.get(path, headers=filled({"Host": OWN} | ALLOWED[name], running.port))

        assert answer.status_code == 200, (path, answer.text)
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert not [key for key in answer.headers if key.startswith("access-control-")]


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_following_a_link_may_only_read(running: Running, site: str) -> None:
    before = state(running)
    headers = {"Sec-Fetch-Site": site} | LINK

    answers = [
        running.http.request(method, f"/v1/jobs/{running.job}{verb}", headers=headers)
        for method, verb in (("POST", "/cancel"), ("POST", "/pause"), ("DELETE", ""))
    ]

    assert [answer.status_code for answer in answers] == [403] * 3
    assert state(running) == before


SETTINGS = {
    "SYNCNORM_PUBLIC_URL": "https://norm.example.org/train/",
    "SYNCNORM_WORKER_URL": "http://api:8000",
    "SYNCNORM_ALLOWED_HOSTS": "gpu7:8000, *.lab.example,[fd00::7]",
}
NAMES = {
    "norm.example.org": 200,
    "Norm.Example.Org:443": 200,
    "api:8000": 200,  # workers, Prometheus
    "gpu7:8000": 200,
    "gpu7": 403,
    "gpu7:8001": 403,
    "a.lab.example": 200,
    "a.b.lab.example:1": 200,
    "lab.example": 403,
    "evillab.example": 403,
    "[fd00::7]:8000": 200,
    "[fd00::8]:8000": 403,
    "127.0.0.1": 200,
    "example.org": 403,
}


def test_names_come_from_the_settings(tmp_path: Path) -> None:
    given = Settings.from_environment(SETTINGS)
    settings = {name: getattr(given, name) for name in ("public_url", "worker_url", "allowed_hosts")}
    with api(tmp_path, **settings) as (client, _):
        seen = {name: client.get("/v1/jobs", headers={"Host": name}).status_code for name in NAMES}
        pages = {
            origin: client.get("/v1/jobs", headers={"Host": "norm.example.org", "Origin": origin}).status_code
            for origin in ("https://norm.example.org", "http://norm.example.org:81", "https://example.org")
        }

    assert seen == NAMES
    assert pages == {"https://norm.example.org": 200, "http://norm.example.org:81": 403, "https://example.org": 403}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            ("SYNCNORM_ALLOWED_HOSTS", value)
            for value in ("*", "http://gpu7", "gpu7/x", "a b", "u@gpu7", ".", "*.x:80")
        ),
        *(("SYNCNORM_PUBLIC_URL", value) for value in ("norm.example.org", "ftp://x", "https://u:p@norm.example.org")),
        ("SYNCNORM_WORKER_URL", "api:8000"),
    ],
)
def test_a_name_that_can_not_be_read_ends_the_start(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=name):
        Settings.from_environment({name: value})


def test_address_it_is_bound_to_is_a_name_of_it() -> None:
    concrete = Settings.from_environment({"SYNCNORM_HOST": "10.0.0.5"}).trusted
    every = Settings.from_environment({"SYNCNORM_HOST": "0.0.0.0"}).trusted

    assert concrete.has(("10.0.0.5", 8000), "172.17.0.2")
    assert not every.has(("0.0.0.0", 8000), "172.17.0.2")
    # Checks of a balancer go to the address that the connection came in on.
    assert every.has(("172.17.0.2", 8000), "172.17.0.2")
    assert not every.has(("172.17.0.3", 8000), "172.17.0.2")


def ask(port: int, text: str) -> bytes:
    """Send bytes as they are; the first answer's status line, or nothing."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(text.replace("\n", "\r\n").replace("PORT", str(port)).encode())
        return connection.makefile("rb").readline().strip()


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("GET /v1/jobs HTTP/1.1\n\n", 400),
        ("GET /v1/jobs HTTP/1.0\n\n", 400),
        ("GET /healthz HTTP/1.0\n\n", 200),  # HAProxy's check
        ("GET /healthz HTTP/1.1\nHost: evil.example\n\n", 403),
        ("GET /v1/jobs HTTP/1.1\nHost: 127.0.0.1\nHost: evil.example\n\n", 400),
        ("GET /v1/jobs HTTP/1.1\nHost: evil.example\nHost: 127.0.0.1\n\n", 400),
        ("GET http://evil.example/v1/jobs HTTP/1.1\nHost: evil.example\n\n", 403),
        ("GET http://127.0.0.1:PORT/v1/jobs HTTP/1.1\nHost: evil.example\n\n", 403),
        ("GET //evil.example/v1/jobs HTTP/1.1\nHost: evil.example\n\n", 403),
        ("GET /v1/jobs HTTP/1.1\nHost: evil.example\nX-Forwarded-Host: 127.0.0.1\nX-Host: 127.0.0.1\n\n", 403),
        ("GET /v1/jobs HTTP/1.1\nhOsT:   localhost  \n\n", 200),
        ("CONNECT evil.example:80 HTTP/1.1\nHost: evil.example:80\n\n", (400, 403)),
        ("POST /v1/jobs/x/cancel HTTP/1.1\nHost: localhost\nContent-Type: text/plain\nContent-Length: 0\n\n", 415),
        ("POST /v1/jobs HTTP/1.1\nHost: localhost\nTransfer-Encoding: chunked\n\n2\n{}\n0\n\n", 415),
    ],
)
def test_request_as_no_client_library_would_send_it(running: Running, text: str, status: int | tuple[int, ...]) -> None:

    line = ask(running.port, text)

    assert int(line.split()[1]) in (status if isinstance(status, tuple) else (status,)), line


def test_every_pair_of_foreign_headers_is_refused(running: Running) -> None:
    """What one header gives away, no other makes good again."""
    before = state(running)
    good = [
        {},
        {"Origin": f"http://127.0.0.1:{running.port}"},
        {"Sec-Fetch-Site": "same-origin"},
        {"Host": "localhost"},
    ]

    for (name, bad), more in itertools.product(FOREIGN.items(), good):
        if "Upgrade" in bad:  # ends what can be sent on the connection
            continue
        headers = filled({"Host": OWN} | more | bad, running.port)
        answer = running.http.post("/v1/jobs", json=COMMAND, headers=headers)
        assert answer.status_code == 403, (name, more)

    assert state(running) == before
