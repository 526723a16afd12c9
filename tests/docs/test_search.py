"""The search of the site in a real browser that reaches no other host."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.docs.test_site import build
from tests.helpers.chromium import browser, needs_chromium
from tests.helpers.paths import ROOT


class Silent(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    site = tmp_path_factory.mktemp("site")
    assert build(ROOT, site).returncode == 0
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=str(site))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


TYPE = """(() => {
    const input = document.querySelector(".md-search__input");
    input.focus();
    input.value = "find_unused_parameters";
    input.dispatchEvent(new KeyboardEvent("keyup", {bubbles: true}));
})()"""


@needs_chromium
def test_search_finds_a_field_of_the_job_spec_by_its_last_part(address: str) -> None:
    with browser() as opened, opened.page() as page:
        page.open(f"{address}/index.html")
        page.wait_for("document.querySelector('.md-search-result__meta').textContent.includes('Type')")
        page.run(TYPE)
        page.wait_for("document.querySelectorAll('.md-search-result__item').length > 0")

        found = page.run("[...document.querySelectorAll('.md-search-result__link')].map(link => link.href).join(' ')")
        assert "#trainddpfind_unused_parameters" in found
