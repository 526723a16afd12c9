"""The pages in a real browser: how they look, that texts of users stay texts, signing in, and refreshing."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from PIL import Image

from syncnorm.service.store import schema
from tests.helpers import chromium, pages
from tests.helpers.chromium import Browser, Page, needs_chromium
from tests.helpers.service.api import ADMIN, api, on_a_socket
from tests.helpers.service.cluster_day import fill, log_line
from tests.helpers.service.world import World
from tests.service.api.pages.test_job_page import HOSTILE

pytestmark = [needs_chromium, pytest.mark.timeout(200)]
SITE = "train.example"
"""A name of the service that is not loopback."""
Site = tuple[str, World, dict[str, list[str]]]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium.browser((pages.EVIL, pages.REBOUND, SITE)) as found:
        yield found


@pytest.fixture(scope="module")
def attacker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pages.Attacker]:
    with pages.attacker(tmp_path_factory.mktemp("attacker")) as found:
        yield found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A service with 500 jobs and without authentication."""
    with api(tmp_path_factory.mktemp("site")) as (http, world):
        ids = fill(world, 500)
        with on_a_socket(http.app) as port:
            yield f"http://127.0.0.1:{port}", world, ids


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Site]:
    with api(tmp_path, auth=True, allowed_hosts=("testserver", SITE)) as (http, world):
        ids = fill(world, 10)
        with on_a_socket(http.app) as port:
            yield f"http://{SITE}:{port}", world, ids


def colours(png: bytes) -> int:
    """How many there are, in the grey of every third dot."""
    return len(np.unique(np.asarray(Image.open(io.BytesIO(png)).convert("L"))[::3, ::3]))


def refused_by_the_policy(page: Page) -> list[str]:
    """What the page's policy kept out while it was loaded anew."""
    page.call("Page.enable")
    watch = "window.kept = []; addEventListener('securitypolicyviolation', (e) => kept.push(e.violatedDirective), true)"
    page.call("Page.addScriptToEvaluateOnNewDocument", source=watch)
    page.run("void (window.left = true, location.reload())")
    page.wait_for("window.left === undefined && document.readyState === 'complete'")
    return list(page.run("kept"))


# How they look


@pytest.mark.parametrize("width", [400, 1600])
@pytest.mark.parametrize("dark", [False, True])
def test_pages_are_drawn_and_as_wide_as_the_window(site: Site, browser: Browser, width: int, dark: bool) -> None:
    url, _, ids = site

    for path in ("/", f"/jobs/{ids['running'][0]}", f"/jobs/{ids['failed'][0]}", "/jobs/job_0"):
        with browser.page(url + path) as page:
            drawn = page.picture(width, 900, dark=dark)

            assert colours(drawn) > 50, path
            assert page.run("document.documentElement.scrollWidth") <= width, path
            ground = Image.open(io.BytesIO(drawn)).convert("L").getpixel((2, 2))
            assert (ground < 60) if dark else (ground > 200)


def test_tables_fields_and_regions_have_names(site: Site, browser: Browser) -> None:
    url, _, ids = site

    for path in ("/", f"/jobs/{ids['running'][0]}", "/sign-in"):
        with browser.page(url + path) as page:
            assert page.run("document.querySelectorAll('header, main, footer, h1').length") == 4
            assert page.run("[...document.querySelectorAll('th')].every((one) => one.scope)")
            assert page.run("[...document.querySelectorAll('tbody tr')].every((one) => one.querySelector('th'))")
            nameless = "section:not([aria-label]):not([aria-labelledby]), progress:not([aria-label])"
            assert page.run(f"document.querySelectorAll('{nameless}').length") == 0
            assert page.run("new Set([...document.querySelectorAll('[id]')].map((one) => one.id)).size") == page.run(
                "document.querySelectorAll('[id]').length"
            )


CONTRAST = """(() => {
  const linear = (c) => (c /= 255, c <= .03928 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4);
  const light = (colour) => {
    const [r, g, b] = colour.match(/[0-9.]+/g).map(Number).map(linear);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const ground = (one) => {
    for (; one; one = one.parentElement) {
      const colour = getComputedStyle(one).backgroundColor;
      if (!colour.startsWith('rgba(0, 0, 0, 0')) return colour;
    }
    return 'rgb(255, 255, 255)';
  };
  const hasText = (one) => [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  const isPoor = (one) => {
    const [a, b] = [getComputedStyle(one).color, ground(one)].map(light).sort((x, y) => y - x);
    return (a + .05) / (b + .05) < 4.5;
  };
  const all = [...document.querySelectorAll('main *, header *, footer *')];
  return all.filter(hasText).filter(isPoor).map((one) => one.outerHTML.slice(0, 80));
})()"""


@pytest.mark.parametrize("dark", [False, True])
def test_text_stands_out_from_its_ground(site: Site, browser: Browser, dark: bool) -> None:
    """By 4.5 to 1, as WCAG 2.2 asks in 1.4.3."""
    url, _, ids = site

    for path in ("/", f"/jobs/{ids['running'][0]}", f"/jobs/{ids['failed'][0]}", "/jobs/job_0"):
        with browser.page(url + path) as page:
            page.picture(1600, 900, dark=dark)

            assert page.run(CONTRAST) == [], path


# What users write


def test_texts_of_users_run_nothing_and_change_no_structure(tmp_path: Path, browser: Browser) -> None:
    with api(tmp_path) as (http, world):
        job = world.submit(labels={"works": "99"})
        world.step()
        world.step()
        (attempt,) = world.store.attempts.unreleased()
        world.store.reports.add_lines(attempt.id, attempt.fence, [log_line(world, 1, HOSTILE)])
        values = {"name": HOSTILE, "owner": HOSTILE, "project": HOSTILE, "message": HOSTILE, "labels": {"a": HOSTILE}}
        with world.database.write() as c:
            c.execute(sa.update(schema.jobs).where(schema.jobs.c.id == job.id).values(**values))
        with on_a_socket(http.app) as port:
            for path in ("/", f"/jobs/{job.id}", "/jobs/%3Cimg%20src=x%20onerror=alert(1)%3E"):
                with browser.page(f"http://127.0.0.1:{port}{path}") as page:
                    page.call("Page.enable")
                    page.run("void (window.alert = () => { window.fooled = true })")

                    assert page.run("document.querySelectorAll('main script, main img, title ~ img').length") == 0
                    assert page.run("document.scripts.length") <= 1
                    assert page.run("window.fooled") is None
                    assert refused_by_the_policy(page) == []
                    if path != "/":
                        assert "onerror=alert" in page.run("document.body.innerText")


# Signing in


def enter(page: Page, token: str) -> None:
    """In the form, which a page at a plain name loads once more."""
    page.wait_for("(location.search || location.pathname === '/sign-in') && document.querySelector('#token')")
    page.run(f"void (document.querySelector('#token').value = {json.dumps(token)})")
    page.run("void document.querySelector('main form button').click()")


def test_user_signs_in_looks_and_signs_out(guarded: Site, browser: Browser) -> None:
    url, _, ids = guarded
    job = f"{url}/jobs/{ids['running'][0]}"
    with browser.page(job) as page:
        drawn = page.picture(1600, 900)
        enter(page, "wrong")
        page.wait_for("document.querySelector('.said')")
        enter(page, ADMIN)
        page.wait_for("document.querySelector('.log')")

        assert colours(drawn) > 50
        assert page.run("location.href") == job
        assert page.run("document.cookie") == ""
        assert ADMIN not in page.run(
            "document.documentElement.outerHTML + location.href + JSON.stringify(history.state)"
        )
        assert page.run("fetch('/v1/jobs').then((answer) => answer.status)") == 401
        page.run("void document.querySelector('header form button').click()")
        page.wait_for("location.pathname === '/sign-in'")
        page.open(url)
        page.wait_for("document.querySelector('#token')")


def test_link_of_another_site_opens_the_page_of_who_has_signed_in(
    guarded: Site, attacker: pages.Attacker, browser: Browser
) -> None:
    url, _, ids = guarded
    job = f"{url}/jobs/{ids['running'][0]}"
    with browser.page(url) as page:
        enter(page, ADMIN)
        page.wait_for("document.querySelector('#running')")
        page.open(f"http://{pages.EVIL}:{attacker.http}/")
        link = f"Object.assign(document.createElement('a'), {{href: {job!r}}})"

        page.run(f"void document.body.appendChild({link}).click()")

        page.wait_for("document.querySelector('.log')")


TRIES = """
  const said = [], form = {method: 'POST', body: new URLSearchParams({token: 'x'})};
  const silent = {...form, mode: 'no-cors'};
  const tries = [['/', {}], [JOB, {}], ['/sign-out', form], ['/sign-in', form], ['/sign-out', silent]];
  for (const [path, how] of tries) {
    const answer = fetch(U + path, {credentials: 'include', ...how});
    said.push(await answer.then((one) => one.type + one.status, () => 'refused'));
  }
  const frame = document.body.appendChild(Object.assign(document.createElement('iframe'), {src: U + '/'}));
  await new Promise((done) => { frame.onload = frame.onerror = done; setTimeout(done, 3000) });
  try { said.push(frame.contentDocument.body.innerText || 'refused') } catch { said.push('refused') }
  return said"""


@pytest.mark.parametrize("place", ["another site", "another port", "rebound name"])
def test_page_of_somebody_else_reads_no_page_and_signs_nobody_out(
    guarded: Site, attacker: pages.Attacker, browser: Browser, place: str
) -> None:
    url, _, ids = guarded
    port = int(url.rsplit(":", 1)[1])
    with browser.page(url) as page:
        enter(page, ADMIN)
        page.wait_for("document.querySelector('#running')")

        with pages.page_at(browser, place, attacker, port) as theirs:
            names = f"const U = {url!r}, JOB = {'/jobs/' + ids['running'][0]!r};"
            tried = theirs.run(f"(async () => {{ {names} {TRIES} }})()")

        assert set(tried) <= {"refused", "opaque0"}
        page.open(url)
        page.wait_for("document.querySelector('#running')")


# Refreshing


def test_page_refreshes_itself_and_keeps_what_the_reader_has_opened(site: Site, browser: Browser) -> None:
    url, world, ids = site
    with browser.page(f"{url}/jobs/{ids['running'][0]}") as page:
        page.run("void (document.querySelector('details').open = true, window.here = true)")
        page.run("void document.querySelector('.crumbs a').focus()")
        attempt = next(one for one in world.store.attempts.unreleased() if one.job_id == ids["running"][0])
        world.store.reports.add_lines(attempt.id, attempt.fence, [log_line(world, 900, "written meanwhile")])

        page.wait_for("document.querySelector('.log').innerText.includes('written meanwhile')", 20)

        assert page.run("window.here") is True  # without loading the page anew
        assert page.run("document.querySelector('details').open") is True
        assert page.run("document.activeElement.getAttribute('href')") == "/"
        assert (
            page.run(
                "(({scrollTop, clientHeight, scrollHeight}) => scrollTop + clientHeight >= scrollHeight - 8)"
                "(document.querySelector('.log'))"
            )
            is True
        )


def test_page_refreshes_itself_without_scripts(site: Site, browser: Browser) -> None:
    url, _, _ = site
    with browser.page() as page:
        page.call("Emulation.setScriptExecutionDisabled", value=True)
        page.open(url)
        page.run("void (window.left = true)")

        page.wait_for("window.left === undefined", 20)


def test_page_says_that_it_is_out_of_date_while_the_service_is_away(tmp_path: Path, browser: Browser) -> None:
    with api(tmp_path) as (http, _), browser.page() as page:
        with on_a_socket(http.app) as port:
            page.open(f"http://127.0.0.1:{port}/")
            assert page.run("document.querySelector('#lost').hidden") is True

        page.wait_for("!document.querySelector('#lost').hidden", 20)
        assert page.run("document.querySelector('#running') !== null")
