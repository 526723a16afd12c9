"""HTTP as RFC 9110 has it: methods, queries, conditional requests, Accept, and a problem for whatever is refused."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from syncnorm.service.api.http.accept import choose
from syncnorm.service.jobs.job import NewEvent
from tests.helpers.service.api import SPEC, api
from tests.helpers.service.world import World
from tests.service.api.test_api import finish, problem

Running = tuple[TestClient, World]


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """For requests that change nothing."""
    with api(tmp_path_factory.mktemp("still")) as (http, _):
        yield http


def submitted(http: TestClient, **changes: Any) -> str:
    return str(http.post("/v1/jobs", json=SPEC | changes).json()["id"])


# Methods

JSON = {"Content-Type": "application/json"}
METHODS = {
    "/v1/jobs": "GET, HEAD, OPTIONS, POST",
    "/v1/jobs/job_1": "GET, HEAD, OPTIONS, PATCH, DELETE",
    "/v1/jobs/job_1/cancel": "OPTIONS, POST",
    "/v1/jobs/job_1/exports": "GET, HEAD, OPTIONS, POST",
    "/v1/packages/" + "0" * 64: "OPTIONS, PUT",
    "/v1/secrets/NAME": "OPTIONS, PUT, DELETE",
    "/healthz": "GET, HEAD, OPTIONS",
}


@pytest.mark.parametrize(("path", "methods"), METHODS.items())
def test_method_that_a_path_lacks_is_answered_with_all_it_has(still: TestClient, path: str, methods: str) -> None:
    for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "TRACE"} - set(methods.split(", ")):
        refused = still.request(method, path)

        problem(refused, 405, "method_not_allowed")
        assert refused.headers["allow"] == methods
    asked = still.options(path)
    assert (asked.status_code, asked.headers["allow"], asked.content) == (204, methods, b"")


def test_options_of_nothing_is_not_found_and_no_other_origin_is_let_in(still: TestClient) -> None:
    preflight = {"Origin": "http://elsewhere.example", "Access-Control-Request-Method": "POST"}

    asked = still.options("/v1/jobs", headers=preflight)

    problem(still.options("/nowhere"), 404, "not_found")
    assert not [name for name in asked.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    "path", ["/healthz", "/readyz", "/metrics", "/openapi.json", "/v1/jobs", "/v1/jobs/{id}", "/v1/jobs/{id}/logs"]
)
def test_head_is_get_without_a_body(http: TestClient, path: str) -> None:
    url = path.format(id=submitted(http))
    own = {"x-request-id", "content-length"} if path == "/metrics" else {"x-request-id"}

    got, head = http.get(url), http.head(url)

    assert (head.status_code, head.content) == (got.status_code, b"")
    assert {k: v for k, v in head.headers.items() if k not in own} == {
        k: v for k, v in got.headers.items() if k not in own
    }


def test_head_of_what_is_not_there_and_of_an_action(still: TestClient) -> None:
    missing, action = still.head("/v1/jobs/job_1"), still.head("/v1/jobs/job_1/cancel")

    assert (missing.status_code, action.status_code) == (404, 405)
    assert action.headers["allow"] == "OPTIONS, POST"


# Queries


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/v1/jobs?bogus=1", ("query:bogus", "is not a parameter. Use one of: ")),
        ("/v1/jobs?stat=queued", ("query:stat", "Did you mean state?")),
        ("/v1/jobs?limit=1&limit=2", ("query:limit", "may be given once, got it 2 times")),
        ("/v1/jobs?name=a%00", ("query:name", "must not contain NUL")),
        ("/v1/jobs/job_1?full=true", ("query:full", "takes none")),
        ("/v1/jobs/job_1/logs?folow=true", ("query:folow", "Did you mean follow?")),
        ("/v1/norms?x", ("query:x", "takes none")),
        ("/healthz?verbose", ("query:verbose", "takes none")),
        ("/v1/jobs?label=team", ("query:label.0", "must be key:value, for example team:vision; got 'team'")),
        ("/v1/jobs?created_after=1767225600", ("query:created_after", "must be a time with its zone")),
        ("/v1/jobs?created_after=2026-01-01T00:00:00+01:00", ("query:created_after", "write a + as %2B")),
        ("/v1/jobs?created_after=0001-01-01T00:00:00%2B23:00", ("query:created_after", "must lie in the years")),
        ("/v1/jobs?state=nope", ("query:state.0", "got 'nope'")),
    ],
)
def test_query_that_would_be_left_out_or_misread_is_refused_by_name(
    still: TestClient, path: str, said: tuple[str, str]
) -> None:
    errors = problem(still.get(path), 422, "invalid_request")["errors"]

    assert errors[0]["pointer"] == said[0]
    assert said[1] in errors[0]["detail"]


def test_unknown_parameter_of_a_submit_stores_nothing(http: TestClient) -> None:
    problem(http.post("/v1/jobs?dryrun=true", json=SPEC), 422, "invalid_request")

    assert http.get("/v1/jobs").json()["items"] == []


# Bodies


@pytest.mark.parametrize(
    ("method", "path", "raw", "pointer"),
    [
        ("POST", "/v1/jobs", '{"name": "a", "seed": 1, "name": "b"}', "/name"),
        ("POST", "/v1/jobs", '{"optimizer": {"lr": 1, "lr": 2}}', "/optimizer/lr"),
        ("POST", "/v1/studies", '{"grid": {"a": [{"x~/": 1, "x~/": 2}]}}', "/grid/a/0/x~0~1"),
        ("PATCH", "/v1/jobs/job_1", '{"labels": {"a": "1", "a": "2"}}', "/labels/a"),
        ("POST", "/v1/tokens", '{"owner": "a", "owner": "b"}', "/owner"),
        ("PUT", "/v1/secrets/NAME", '{"value": "a", "value": "b"}', "/value"),
    ],
)
def test_key_that_comes_twice_is_refused_with_its_place(
    still: TestClient, method: str, path: str, raw: str, pointer: str
) -> None:
    answer = still.request(method, path, content=raw, headers=JSON)

    assert problem(answer, 422, "invalid_value")["errors"][0]["pointer"] == pointer


@pytest.mark.parametrize("number", ["9" * 30, "9" * 5000, "-" + "9" * 5000])
def test_number_beyond_64_bit_is_refused_however_long(still: TestClient, number: str) -> None:
    answer = still.post("/v1/jobs", content='{"seed": %s}' % number, headers=JSON)  # noqa: UP031

    (error,) = problem(answer, 422, "invalid_value")["errors"]
    assert error == {"pointer": "/seed", "detail": "must fit 64 bit"}


# Conditional requests


def test_what_has_not_changed_is_answered_without_a_body(http: TestClient) -> None:
    job = f"/v1/jobs/{submitted(http)}"

    for path in (job, "/v1/jobs", "/v1/norms", f"{job}/events", f"{job}/logs", "/v1/cluster", "/v1/studies"):
        tag = http.get(path).headers["etag"]
        for given in (tag, f"W/{tag}", f'"other", {tag}', "*"):
            same = http.get(path, headers={"If-None-Match": given})
            assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", tag), (path, given)
        assert http.get(path, headers={"If-None-Match": '"other"'}).status_code == 200
        assert http.head(path, headers={"If-None-Match": tag}).status_code == 304


def test_progress_changes_the_tag_and_not_the_version(running: Running) -> None:
    http, world = running
    path = f"/v1/jobs/{submitted(http, labels={'works': '99'})}"
    world.step()
    world.step()
    (attempt,) = world.store.attempts.unreleased()
    before = http.get(path)
    world.store.reports.progress(attempt.id, attempt.fence, 30, 7, {"step": 7, "metrics": {}})

    after = http.get(path, headers={"If-None-Match": before.headers["etag"]})

    assert (after.status_code, after.json()["progress"]["step"]) == (200, 7)
    assert after.json()["version"] == before.json()["version"]
    assert http.patch(path, json={"priority": 1}, headers={"If-Match": before.headers["etag"]}).status_code == 200


@pytest.mark.parametrize("given", ["{tag}", '"{version}"', '"99", "{version}"', '"99",{tag}', "*", '"{version}.older"'])
def test_change_is_made_if_the_version_is_one_of_those_named(http: TestClient, given: str) -> None:
    answer = http.get(f"/v1/jobs/{submitted(http)}")
    header = given.format(tag=answer.headers["etag"], version=answer.json()["version"])

    changed = http.patch(f"/v1/jobs/{answer.json()['id']}", json={"priority": 5}, headers={"If-Match": header})

    assert (changed.status_code, changed.json()["priority"]) == (200, 5)


@pytest.mark.parametrize("given", ['"99"', 'W/"1"', "1", '"0", "99"'])
def test_change_is_refused_if_another_version_is_named(http: TestClient, given: str) -> None:
    path = f"/v1/jobs/{submitted(http)}"

    refused = http.patch(path, json={"priority": 5}, headers={"If-Match": given})

    assert '"1"' in problem(refused, 412, "precondition_failed")["detail"]
    assert http.get(path).json()["priority"] == 0


def test_delete_honours_if_match(running: Running) -> None:
    http, world = running
    path = f"/v1/jobs/{submitted(http)}"
    finish(world, path.rsplit("/", 1)[1])
    tag = http.get(path).headers["etag"]

    stale = http.delete(path, headers={"If-Match": '"0"'})
    done = http.delete(path, headers={"If-Match": f'"0", {tag}'})

    problem(stale, 412, "precondition_failed")
    assert done.status_code == 204


@pytest.mark.parametrize("change", [{}, {"priority": None}, {"priority": 0, "labels": {}}])
def test_patch_that_changes_nothing_makes_no_new_version(running: Running, change: dict[str, Any]) -> None:
    http, world = running
    job_id = submitted(http)

    same = http.patch(f"/v1/jobs/{job_id}", json=change, headers={"If-Match": '"1"'})

    assert (same.status_code, same.json()["version"]) == (200, 1)
    assert [event.kind for event in world.store.history.events(job_id)] == ["queued"]


# Accept


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ("", "application/json"),
        ("*/*", "application/json"),
        ("text/plain", "text/plain"),
        ("TEXT/Plain; charset=utf-8", "text/plain"),
        ("text/*", "text/plain"),
        ("application/json;q=0.1, application/x-ndjson;q=0.9", "application/x-ndjson"),
        ("application/json;q=0, */*", "text/plain"),
        ("text/html, image/gif, *; q=.2, */*; q=.2", "application/json"),
        ("text/plain;q=nonsense, text/event-stream", "text/event-stream"),
        ("text/html", None),
        ("*/*;q=0", None),
    ],
)
def test_most_wanted_form_is_chosen(accept: str, chosen: str | None) -> None:
    forms = ["application/json", "text/plain", "application/x-ndjson", "text/event-stream"]

    assert choose(accept, forms) == chosen


@pytest.mark.parametrize(
    ("path", "accept"),
    [
        ("/v1/jobs", "application/xml"),
        ("/v1/jobs/{id}", "text/html"),
        ("/v1/jobs/{id}/events", "text/plain"),
        ("/v1/jobs/{id}/logs", "image/png"),
        ("/v1/jobs/{id}/logs?follow=true", "application/json"),
    ],
)
def test_form_that_there_is_not_is_refused_with_those_there_are(http: TestClient, path: str, accept: str) -> None:
    answer = http.get(path.format(id=submitted(http)), headers={"Accept": accept})

    refused = problem(answer, 406, "not_acceptable")
    assert refused["available"]
    assert accept in refused["detail"]


def test_health_and_changes_answer_whatever_accept_says(http: TestClient) -> None:
    accept = {"Accept": "text/html"}

    assert http.get("/healthz", headers=accept).status_code == 200
    assert http.post("/v1/jobs", json=SPEC, headers=accept).status_code == 201


def test_page_in_text_or_ndjson_links_to_the_next_one(running: Running) -> None:
    http, world = running
    job_id = submitted(http)
    for number in range(4):
        world.store.history.add_event(job_id, NewEvent("note", str(number)))
    seen: list[str] = []
    path = f"/v1/jobs/{job_id}/events?limit=2"

    while path:
        page = http.get(path, headers={"Accept": "application/x-ndjson"})
        seen += page.text.splitlines()
        link = re.fullmatch(r'<(.*)>; rel="next"', page.headers.get("link", ""))
        path = link[1] if link else ""

    assert len(seen) == 5


# Problems

ODD_PATHS = [
    *("/v1/jobs/", "/v1//jobs", "//v1/jobs", "/v1/jobs/%2F", "/v1/jobs/..%2Fnorms", "/v1/jobs/%00", "/v1/jobs/a%00b"),
    *("/v1/jobs/%ff", "/v1/jobs/%zz", "/v1/jobs/%", "/v1/jobs/%C3%A9", "/v1/jobs/" + "x" * 5000, "/v1/studies/%00"),
    *("/v1/jobs/%00/events", "/v1/jobs/%00/exports/%00", "/v1/jobs/a/exports/%00", "/favicon.ico", "/v1/jobs/x/"),
    *("/v1/studies/x%00/report", "/v1/jobs/%F0%9F%98%80", "/v1/jobs/" + "%41" * 2000, "/v1/jobs/a;b=c", "/%2e%2e"),
]


@pytest.mark.parametrize("path", ODD_PATHS)
def test_odd_path_is_not_found_and_told_as_a_problem(still: TestClient, path: str) -> None:
    for method in ("GET", "DELETE"):
        answer = still.request(method, path, follow_redirects=False)

        body = problem(answer, answer.status_code, answer.json()["code"])
        assert answer.status_code in (404, 405)
        assert re.fullmatch(r"[\x21-\x7e]+", body["instance"])  # a URI reference


def test_range_is_not_known_and_left_out(still: TestClient) -> None:
    assert still.get("/v1/jobs", headers={"Range": "bytes=9-1"}).status_code == 200


@pytest.mark.parametrize("host", ["[::1", "a b", "[", "x" * 3000])
def test_odd_host_is_no_internal_error(still: TestClient, host: str) -> None:
    for path in ("/nowhere", "/v1/jobs", "/v1/jobs/x", "/v1/jobs/x/logs?limit=1"):
        assert still.get(path, headers={"Host": host}).status_code < 500


def test_problems_have_titles_and_codes_that_do_not_depend_on_python(still: TestClient) -> None:
    large, unread = still.post("/v1/jobs", content=b" " * 2**21, headers=JSON), still.get("/v1/jobs?limit=x")

    assert problem(large, 413, "request_entity_too_large")["title"] == "Content Too Large"
    assert problem(unread, 422, "invalid_request")["title"] == "Unprocessable Content"
