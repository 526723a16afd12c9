"""What web pages achieve against the API with a real browser, and what users do with theirs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.helpers import chromium, pages
from tests.helpers.chromium import Browser, Page, needs_chromium
from tests.helpers.service.api import SPEC, api, on_a_socket

pytestmark = [needs_chromium, pytest.mark.timeout(400)]

CANARY = "only-for-its-owner"
COMMAND = SPEC | {"name": "STEP", "model": {"class_path": "os.system", "init_args": {"command": "id"}}}


@dataclass(frozen=True)
class Running:
    target: pages.Target
    http: httpx.Client

    def state(self) -> tuple[Any, ...]:
        return tuple(self.http.get(f"/v1/{name}").json()["items"] for name in ("jobs", "secrets", "tokens"))

    def refused(self) -> int:
        """Requests that were answered with 403 so far."""
        lines = [line for line in self.http.get("/metrics").text.splitlines() if 'status="403"' in line]
        return sum(int(float(line.split()[-1])) for line in lines if "_count" in line or "_total" in line)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The API as `serve` has it by default: no tokens, code allowed."""
    with (
        api(tmp_path_factory.mktemp("home"), allow_code=True) as (client, _),
        on_a_socket(client.app) as port,
        httpx.Client(base_url=f"http://127.0.0.1:{port}") as http,
    ):
        job = http.post("/v1/jobs", json=SPEC | {"labels": {"canary": CANARY}}).json()["id"]
        body = json.dumps(COMMAND)
        yield Running(pages.Target(str(http.base_url).rstrip("/"), "/v1/jobs", body, f"/v1/jobs/{job}", job), http)


@pytest.fixture(scope="module")
def attacker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pages.Attacker]:
    with pages.attacker(tmp_path_factory.mktemp("attacker")) as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium.browser((pages.EVIL, pages.REBOUND)) as found:
        yield found


@pytest.mark.parametrize("place", pages.PLACES)
def test_page_of_somebody_else_changes_nothing_and_reads_nothing(
    running: Running, attacker: pages.Attacker, browser: Browser, place: str
) -> None:
    before, refused = running.state(), running.refused()
    port = int(running.target.url.rsplit(":", 1)[1])

    with pages.page_at(browser, place, attacker, port) as page:
        seen = pages.attack(page, place, attacker, running.target, pages.WRITES | pages.READS)
        shown = page.run("document.documentElement.outerHTML")

    assert running.state() == before
    assert set(seen) == {*pages.WRITES, *pages.READS}
    assert {kind: text for kind, text in seen.items() if CANARY in text or "200 " in text or "opened" in text} == {}
    assert CANARY not in shown
    assert running.refused() - refused > 20  # the browser did ask


# What users do


@pytest.fixture
def docs(running: Running, browser: Browser) -> Iterator[Page]:
    with browser.page(f"{running.target.url}/docs") as page:
        page.wait_for("document.querySelectorAll('.opblock').length > 20")
        yield page


def loaded_from(page: Page) -> set[str]:
    """Hosts of everything that the page asked for."""
    entries = page.run("performance.getEntries().map((entry) => entry.name).filter((name) => name.includes('://'))")
    return {urlsplit(entry).netloc for entry in entries}


def test_docs_work_without_internet(running: Running, docs: Page) -> None:
    assert loaded_from(docs) == {urlsplit(running.target.url).netloc}
    assert docs.run("document.querySelector('.title').innerText").startswith("syncnorm")


def test_redoc_works_without_internet(running: Running, browser: Browser) -> None:
    with browser.page(f"{running.target.url}/redoc") as page:
        page.wait_for("document.body.innerText.includes('/v1/jobs')")

        # It asks for its makers' logo, which the page's policy keeps out.
        assert loaded_from(page) - {"cdn.redoc.ly"} == {urlsplit(running.target.url).netloc}


def check_forward(docs: Page, method: str, path: str, body: str | None = None) -> str:
    """Press the buttons of one operation; its answer as the page shows it."""
    block = f"[...document.querySelectorAll('.opblock-{method}')].find((one) => one.querySelector("
    block += f"'.opblock-summary-path').dataset.path === '{path}')"
    docs.run(f"void {block}.querySelector('.opblock-summary-control').click()")
    docs.wait_for(f"{block}.querySelector('.try-out__btn')")
    docs.run(f"void {block}.querySelector('.try-out__btn').click()")
    if body is not None:
        area = f"{block}.querySelector('textarea.body-param__text')"
        docs.wait_for(area)
        # As typing does, for React to notice.
        docs.run(
            "Object.getOwnPropertyDescriptor(HTMLTextAreaElement.prototype, 'value').set.call("
            f"{area}, {json.dumps(body)}), {area}.dispatchEvent(new Event('input', {{bubbles: true}}))"
        )
    docs.wait_for(f"{block}.querySelector('.execute')")
    docs.run(f"void {block}.querySelector('.execute').click()")
    docs.wait_for(f"{block}.querySelector('.live-responses-table .response-col_status')")
    return str(docs.run(f"{block}.querySelector('.live-responses-table').innerText"))


def test_docs_let_a_user_read_and_submit(running: Running, docs: Page) -> None:
    listed = check_forward(docs, "get", "/v1/jobs")
    submitted = check_forward(docs, "post", "/v1/jobs", json.dumps(SPEC | {"name": "from-the-docs"}))

    assert running.target.job in listed
    assert "201" in submitted
    assert "from-the-docs" in [job["name"] for job in running.http.get("/v1/jobs").json()["items"]]


@pytest.mark.parametrize("path", ["", "/explain", "/attempts", "/events", "/logs", "/statistics"])
def test_links_on_other_pages_lead_to_a_job(
    running: Running, attacker: pages.Attacker, browser: Browser, path: str
) -> None:
    """As those in a run's description in MLflow, which is on another port."""
    url = f"{running.target.url}{running.target.read}{path}"
    link = f"Object.assign(document.createElement('a'), {{href: {url!r}}})"
    with browser.page(f"http://localhost:{attacker.http}/") as page:
        page.run(f"void document.body.appendChild({link}).click()")
        page.wait_for(f"location.href === {url!r} && document.readyState === 'complete'")

        assert page.run("performance.getEntriesByType('navigation')[0].responseStatus") == 200


def test_report_of_a_study_keeps_its_dress(running: Running, browser: Browser) -> None:
    study = {"name": "small", "base": SPEC, "grid": {"data.batch_size": [2, 16]}, "seeds": [0]}
    made = running.http.post("/v1/studies", json=study).json()

    with browser.page(f"{running.target.url}/v1/studies/{made['id']}/report") as page:
        assert page.run("document.styleSheets[0].cssRules.length") > 3
        assert page.run("[...document.images].every((image) => image.naturalWidth > 0)")
