"""Refusals and outages at the addresses of pages: readable for people, while the API keeps to JSON."""

from __future__ import annotations

from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from syncnorm.service.backend_errors import DatabaseUnavailableError
from tests.helpers.service.api import api
from tests.helpers.service.web_page import text
from tests.service.api.test_api import problem

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"
POLICY = ("default-src 'none'", "base-uri 'none'", "form-action 'self'", "frame-ancestors 'none'", "connect-src 'self'")


@pytest.mark.parametrize("accept", [BROWSER, "*/*", None])
def test_problem_of_a_page_is_a_page(http: TestClient, accept: str | None) -> None:
    http.headers["Accept"] = accept or ""
    for method, path, status in (
        ("GET", "/jobs/job_1", 404),
        ("GET", "/jobs/", 404),
        ("POST", "/", 405),
        ("DELETE", "/jobs/job_1", 405),
        ("GET", "/sign-out", 405),
        ("GET", "/?refresh=sometimes", 422),
    ):
        answer = http.request(method, path)

        assert (answer.status_code, answer.headers["content-type"]) == (status, "text/html; charset=utf-8"), path
        assert answer.headers["x-request-id"] in text(answer)
        assert ("allow" in answer.headers) == (status == 405)


def test_problem_of_the_api_stays_json_for_a_browser_too(http: TestClient) -> None:
    http.headers["Accept"] = BROWSER

    problem(http.get("/v1/jobs/job_1"), 404, "not_found")
    problem(http.get("/nowhere"), 404, "not_found")
    problem(http.post("/healthz"), 405, "method_not_allowed")


@pytest.mark.parametrize(
    "accept", ["application/json", "application/problem+json", "text/html;q=0.1, application/json"]
)
def test_client_that_prefers_json_gets_the_problem_as_json(http: TestClient, accept: str) -> None:
    problem(
        http.get("/jobs/job_1", headers={"Accept": accept}),
        406 if "html" not in accept else 404,
        "not_acceptable" if "html" not in accept else "not_found",
    )


def test_pages_are_answered_to_head_and_options(http: TestClient) -> None:
    for path in ("/", "/jobs/job_1", "/sign-in"):
        got, head = http.get(path, follow_redirects=False), http.head(path, follow_redirects=False)

        assert (head.status_code, head.content) == (got.status_code, b"")
        assert http.options(path).headers["allow"].startswith("GET, HEAD, OPTIONS")


def test_policy_of_a_page_lets_in_no_script_but_its_own(http: TestClient) -> None:
    for answer in (http.get("/"), http.get("/jobs/job_1")):
        policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))

        assert set(POLICY) <= set(answer.headers["content-security-policy"].split("; "))
        assert policy["script-src"].startswith("'sha256-") and " " not in policy["script-src"]
        assert policy["style-src"].startswith("'sha256-")
        assert (answer.headers["x-frame-options"], answer.headers["cache-control"]) == ("DENY", "no-store")


def test_page_without_a_database_says_so_and_tries_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with api(tmp_path) as (http, world):

        def away(*_: object) -> None:
            raise DatabaseUnavailableError("The database is unreachable.")

        monkeypatch.setattr(world.store.jobs, "count_by_state", away)
        monkeypatch.setattr(world.store.jobs, "get", away)
        answers = [http.get("/"), http.get("/jobs/job_1")]
        in_json = http.get("/v1/jobs/job_1")

    for answer in answers:
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert "The database is unreachable." in text(answer)
        assert 'data-refresh="10"' in answer.text
    problem(in_json, 503, "database_unavailable")


def test_defect_of_a_page_is_a_page_with_the_request_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with api(tmp_path) as (http, world):
        monkeypatch.setattr(world.store.jobs, "count_by_state", lambda _owner: 1 / 0)
        answer = http.get("/")

    assert (answer.status_code, answer.headers["content-type"]) == (500, "text/html; charset=utf-8")
    assert answer.headers["x-request-id"] in text(answer)
    assert "ZeroDivisionError" not in answer.text


def test_page_is_limited_as_the_api_is(tmp_path: Path) -> None:
    with api(tmp_path, auth=True, rate_limit=1.0) as (http, _):
        answers = [http.get("/") for _ in range(4)]

    assert answers[-1].status_code == 429
    assert "More than 1 requests a second" in text(answers[-1])
    assert int(answers[-1].headers["retry-after"]) >= 1
