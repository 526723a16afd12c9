"""Signing in: what the cookie opens and what it doesn't, and when it ends."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from http.cookies import Morsel, SimpleCookie
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from syncnorm.service.api.auth import digest
from tests.helpers.service.api import ADMIN, SPEC, api
from tests.helpers.service.web_page import text
from tests.helpers.service.world import World

Running = tuple[TestClient, World]


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Running]:
    """Without an Authorization header; it keeps cookies, and follows no redirect."""
    with api(tmp_path, auth=True, public_url="http://testserver") as (http, world):
        del http.headers["Authorization"]
        http.follow_redirects = False
        yield http, world


BY_ADMIN = {"Authorization": f"Bearer {ADMIN}"}


def new_token(http: TestClient, owner: str, **fields: Any) -> dict[str, Any]:
    made: dict[str, Any] = http.post("/v1/tokens", json={"owner": owner, **fields}, headers=BY_ADMIN).json()
    return made


def sign_in(http: TestClient, token: str, **fields: str) -> Any:
    return http.post("/sign-in", data={"token": token, **fields})


def cookie(answer: Any) -> Morsel[str]:
    (found,) = SimpleCookie(answer.headers["set-cookie"]).values()
    return found


# What it opens


def test_page_without_a_session_is_the_form_and_shows_nothing_else(browser: Running) -> None:
    http, world = browser
    job = world.submit(name="only-for-its-owner")

    for path in ("/", f"/jobs/{job.id}"):
        shown = http.get(path)

        assert shown.status_code == 401
        assert shown.headers["www-authenticate"] == "Bearer"
        assert '<form method="post" action="/sign-in">' in shown.text
        assert f'name="back" value="{path}"' in shown.text
        assert "only-for-its-owner" not in shown.text
        assert "http://mlflow" not in shown.text


def test_signing_in_leads_back_to_the_page(browser: Running) -> None:
    http, _ = browser
    job = http.post("/v1/jobs", json=SPEC, headers=BY_ADMIN).json()["id"]

    answer = sign_in(http, f"  {ADMIN}\n", back=f"/jobs/{job}")

    assert (answer.status_code, answer.headers["location"]) == (303, f"/jobs/{job}")
    shown = http.get(f"/jobs/{job}")
    assert (shown.status_code, shown.headers["cache-control"]) == (200, "no-store")
    assert "Sign out" in text(shown)


@pytest.mark.parametrize(
    "back",
    [
        "https://evil.example/",
        "//evil.example",
        "/\\evil.example",
        "/docs",
        "/jobs/../v1/jobs",
        "/jobs/a\nb",
        "javascript:1",
    ],
)
def test_signing_in_leads_nowhere_else(browser: Running, back: str) -> None:
    http, _ = browser

    assert sign_in(http, ADMIN, back=back).headers["location"] == "/"
    assert 'name="back" value="/"' in sign_in(http, "wrong", back=back).text


def test_session_sees_what_its_token_sees(browser: Running) -> None:
    http, world = browser
    theirs = world.submit(name="of-ann")  # ann's
    sign_in(http, new_token(http, "bob", scopes=["read"])["token"])

    assert "of-ann" not in http.get("/").text
    assert http.get(f"/jobs/{theirs.id}").status_code == 404
    assert http.get(f"/jobs/{theirs.id}").text.count(theirs.id) == http.get("/jobs/job_0").text.count("job_0")


def test_token_that_may_not_read_opens_no_session(browser: Running) -> None:
    http, _ = browser

    answer = sign_in(http, new_token(http, "bob", scopes=["submit"])["token"])

    assert (answer.status_code, "set-cookie" in answer.headers) == (403, False)
    assert "needs a token with the scope read" in text(answer)


# What it does not open


def test_cookie_is_no_key_to_the_api(browser: Running) -> None:
    http, world = browser
    job = world.submit()
    sign_in(http, ADMIN)

    answers = [
        http.get("/v1/jobs"),
        http.get(f"/v1/jobs/{job.id}/logs"),
        http.post("/v1/jobs", json=SPEC),
        http.post(f"/v1/jobs/{job.id}/cancel"),
        http.delete(f"/v1/jobs/{job.id}"),
        http.post("/v1/tokens", json={"owner": "eve"}),
    ]

    assert {answer.status_code for answer in answers} == {401}
    assert world.job(job.id) == job


def test_cookie_holds_neither_the_token_nor_its_digest(browser: Running) -> None:
    http, _ = browser
    made = new_token(http, "bob")

    value = cookie(sign_in(http, made["token"])).value

    assert made["token"].rsplit("_", 1)[1] not in value
    assert digest(made["token"]) not in value
    assert http.get("/", headers={"Authorization": f"Bearer {value}"}).status_code == 401


def test_attributes_of_the_cookie(browser: Running) -> None:
    http, _ = browser

    made = cookie(sign_in(http, ADMIN))

    assert (made["httponly"], made["samesite"].lower(), made["path"]) == (True, "strict", "/")
    assert (made["max-age"], made["secure"], made["domain"]) == ("43200", "", "")


@pytest.mark.parametrize("port", ["", ":8443"])
def test_cookie_of_a_service_behind_tls_is_secure(tmp_path: Path, port: str) -> None:
    public = f"https://train.example.org{port}"
    with api(tmp_path, auth=True, public_url=public) as (http, _):
        headers = {"Host": f"train.example.org{port}", "Origin": public}
        answer = http.post("/sign-in", data={"token": ADMIN}, headers=headers, follow_redirects=False)

    assert cookie(answer)["secure"] is True
    assert cookie(answer).key == f"syncnorm_session_{port.lstrip(':') or 0}"


# Its end


def test_sign_out_ends_the_session_in_this_browser(browser: Running) -> None:
    http, _ = browser
    sign_in(http, ADMIN)

    answer = http.post("/sign-out")

    assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in")
    assert cookie(answer)["max-age"] == "0"
    assert (http.get("/").status_code, http.get("/sign-in").status_code) == (401, 200)


def test_revoked_token_ends_its_sessions_at_once(browser: Running) -> None:
    http, world = browser
    made = new_token(http, "bob")
    sign_in(http, made["token"])
    assert http.get("/").status_code == 200

    world.store.tokens.revoke(made["id"])  # by another replica, of which this one hears nothing

    shown = http.get("/")
    assert shown.status_code == 401
    assert "This token was revoked on " in text(shown)


def test_expired_token_ends_its_sessions_at_once(browser: Running) -> None:
    http, world = browser
    made = new_token(http, "bob", expires_at=(world.clock() + timedelta(seconds=60)).isoformat())
    sign_in(http, made["token"])

    world.clock.advance(59)
    assert http.get("/").status_code == 200
    world.clock.advance(1)

    assert "This token expired on " in text(http.get("/"))


def test_session_ends_after_twelve_hours(browser: Running) -> None:
    http, world = browser
    value = cookie(sign_in(http, ADMIN))
    http.cookies.clear()  # browsers forget it by themselves; this one is told to send it
    header = {"Cookie": f"{value.key}={value.value}"}

    world.clock.advance(12 * 3600 - 1)
    assert http.get("/", headers=header).status_code == 200
    world.clock.advance(1)

    assert "Your session is over." in text(http.get("/", headers=header))


def test_changed_cookie_opens_nothing(browser: Running) -> None:
    http, _ = browser
    bob = new_token(http, "bob")["id"]
    made = cookie(sign_in(http, ADMIN))
    token_id, ends_at, seal = made.value.split(".")
    http.cookies.clear()

    changed = [
        f"{bob}.{ends_at}.{seal}",
        f"{token_id}.{int(ends_at) + 1}.{seal}",
        f"{token_id}.{ends_at}.{'0' * 64}",
        f"{token_id}.{ends_at}",
        f"{'0' * 16}.{ends_at}.{seal}",
        f"{token_id}.{'9' * 11}.{seal}",
        "",
    ]

    for value in changed:
        assert http.get("/", headers={"Cookie": f"{made.key}={value}"}).status_code == 401, value


# Who may ask


def test_wrong_token_is_said_and_audited(browser: Running) -> None:
    http, _ = browser

    answer = sign_in(http, "sn_0123456789abcdef_" + "x" * 43, back="/")

    assert answer.status_code == 401
    assert "This token is unknown, or its secret is wrong." in text(answer)
    assert "set-cookie" not in answer.headers
    http.app.state.context.audit_trail.flush()  # type: ignore[attr-defined]
    (entry,) = http.get("/v1/audit?action=auth.failed", headers=BY_ADMIN).json()["items"]
    assert "unknown token or wrong secret" in entry["detail"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"},
        {"Sec-Fetch-Site": "same-site"},
        {"Host": "evil.example"},
    ],
)
def test_page_of_another_origin_signs_nobody_in_or_out(browser: Running, headers: dict[str, str]) -> None:
    http, _ = browser

    for path in ("/sign-in", "/sign-out"):
        answer = http.post(path, data={"token": ADMIN}, headers=headers)

        assert (answer.status_code, "set-cookie" in answer.headers) == (403, False)


def test_forms_are_taken_at_these_two_paths_alone(browser: Running) -> None:
    http, world = browser
    form = {"Content-Type": "application/x-www-form-urlencoded", **BY_ADMIN}

    for path in ("/v1/jobs", "/v1/jobs:cancel", "/v1/tokens", "/", "/sign-in/", "/sign-in?", "/jobs/job_1"):
        refused = http.post(path, content=b"token=a", headers=form)
        assert refused.status_code == (401 if path == "/sign-in?" else 415), path
    assert http.post("/sign-in", json={"token": ADMIN}).status_code == 415
    assert world.store.tokens.all() == []


@pytest.mark.parametrize("body", [b"token=" + b"a" * 5000, b"&".join([b"a=1"] * 50), "token=ä".encode(), b"token=%ff"])
def test_form_that_is_none_is_refused(browser: Running, body: bytes) -> None:
    http, _ = browser

    answer = http.post("/sign-in", content=body, headers={"Content-Type": "application/x-www-form-urlencoded"})

    assert answer.status_code in (413, 422)
    assert answer.headers["content-type"].startswith("text/html")


@pytest.mark.parametrize(
    ("site", "hops"), [("cross-site", True), (None, True), ("none", False), ("same-origin", False)]
)
def test_link_of_another_site_loads_the_page_once_more(browser: Running, site: str | None, hops: bool) -> None:
    """A browser leaves a cookie of SameSite=Strict out of the request that follows such a link."""
    http, _ = browser
    followed = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"} if site else {}

    first, second = http.get("/jobs/job_1", headers=followed), http.get("/jobs/job_1?refresh=on", headers=followed)

    assert ('<meta http-equiv="refresh" content="0; url=/jobs/job_1?refresh=on">' in first.text) is hops
    assert "http-equiv" not in second.text


def test_without_authentication_there_is_nothing_to_sign_in_to(tmp_path: Path) -> None:
    with api(tmp_path) as (http, _):
        form, sent = (
            http.get("/sign-in", follow_redirects=False),
            http.post("/sign-in", data={"token": "x"}, follow_redirects=False),
        )
        shown = http.get("/")

    assert (form.status_code, form.headers["location"]) == (sent.status_code, sent.headers["location"]) == (303, "/")
    assert "set-cookie" not in sent.headers
    assert "Sign out" not in shown.text
