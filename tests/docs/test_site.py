"""The site builds without a warning, needs no network, and takes along what its pages link to."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from docs.generate.linked_files import in_repository, in_site, linked, with_links_of_site
from tests.helpers.paths import ROOT


def build(root: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """Not with --quiet, which hides warnings from --strict."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT, folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_site_has_every_page(site: Path) -> None:
    pages = [path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")]

    assert [str(page) for page in pages if not (site / str(page).replace("README", "index")).exists()] == []


def test_no_page_loads_anything_from_another_host(site: Path) -> None:
    loads = re.compile(r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=[\"']?((?:https?:)?//[^\"'> ]+)")

    assert [found for page in site.rglob("*.html") for found in loads.findall(page.read_text())] == []
    assert loads.findall('<script src="https://unpkg.com/x"></script>')


def test_links_that_leave_the_folder_lead_to_files_of_the_site(site: Path) -> None:
    page = (site / "reference" / "studies.html").read_text()

    assert 'src="../repository/service/studies/report.png"' in page
    assert (site / "repository/service/studies/report.png").read_bytes() == (
        ROOT / "service/studies/report.png"
    ).read_bytes()
    assert 'href="../../reference/normalizations.html"' in (site / "repository/norm/index.html").read_text()


def test_broken_links_end_the_build(tmp_path: Path) -> None:
    (tmp_path / "mkdocs.yml").write_text((ROOT / "mkdocs.yml").read_text().partition("\nnav:")[0])
    shutil.copytree(ROOT / "docs" / "generate", tmp_path / "docs" / "generate")
    (tmp_path / "docs" / "other.md").write_text("# Heading\n")
    broken = ("none.md", "other.md#none", "../norm/none.md", "none.png")
    text = "".join(f"[a]({link})\n" for link in ("other.md#heading", *broken))

    (tmp_path / "docs" / "README.md").write_text(f"# Index\n\n{text}")
    done = build(tmp_path, tmp_path / "site")

    assert done.returncode != 0
    assert [link for link in broken if f"'{link}'" not in done.stderr] == []
    assert "#heading" not in done.stderr


def test_files_are_found_through_the_pages_that_name_them(tmp_path: Path) -> None:
    for name, text in {
        "docs/README.md": "[a](../norm/README.md#use) [gone](../none.md) [web](https://example.org/x.md)",
        "norm/README.md": "[b](../docs/README.md) ![c](picture.png)",
        "norm/picture.png": "",
        "norm/unnamed.md": "",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)

    assert linked(tmp_path, ["docs/README.md"]) == {"norm/README.md", "norm/picture.png"}


def test_links_are_written_as_the_site_has_them() -> None:
    assert with_links_of_site("[a](../../norm/README.md#rules)", "reference/zoo.md") == (
        "[a](../repository/norm/README.md#rules)"
    )
    assert with_links_of_site("[a](../docs/README.md)", "repository/norm/README.md") == "[a](../../README.md)"
    assert with_links_of_site("[a](zoo.md) [b](#c)", "reference/files.md") == "[a](zoo.md) [b](#c)"
    for path in ("docs/reference/zoo.md", "norm/README.md"):
        assert in_repository(in_site(path)) == path
