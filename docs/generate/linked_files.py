"""A hook of mkdocs: the site takes along every file of the repository that a page links to.

Pages link to each other by their places in the repository, so that they also work in a checkout. In the site, what
lies outside of docs/ is under `repository/`, and links are written anew to match.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from os.path import normpath, relpath
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
OUTSIDE = "repository"
_LINK = re.compile(r"(?<=\]\()(?P<path>[^)\s#:]+)(?=[)#])")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    from mkdocs.structure.files import File

    pages = [f"docs/{file.src_uri}" for file in files.documentation_pages()]
    for path in sorted(linked(ROOT, pages)):
        files.append(File.generated(config, in_site(path), abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    return with_links_of_site(markdown, page.file.src_uri)


def linked(root: Path, pages: list[str]) -> set[str]:
    """Files outside of docs/ that pages link to, and those that these link to, below the root."""
    found: set[str] = set()
    todo = list(pages)
    while todo:
        page = todo.pop()
        new = {path for path in _targets(root, page) if not path.startswith("docs/")} - found
        found |= new
        todo += [path for path in new if path.endswith(".md")]
    return found


def _targets(root: Path, page: str) -> Iterator[str]:
    for link in _LINK.finditer((root / page).read_text(encoding="utf-8")):
        path = normpath(Path(page).parent / link["path"])
        if (root / path).is_file():
            yield path


def in_site(path: str) -> str:
    """Where a file of the repository lies in the site."""
    return path.removeprefix("docs/") if path.startswith("docs/") else f"{OUTSIDE}/{path}"


def in_repository(uri: str) -> str:
    """Where a file of the site lies in the repository."""
    return uri.removeprefix(f"{OUTSIDE}/") if uri.startswith(f"{OUTSIDE}/") else f"docs/{uri}"


def with_links_of_site(markdown: str, uri: str) -> str:
    """The text of the page at `uri`, its relative links as they are in the site."""

    def moved(link: re.Match[str]) -> str:
        target = normpath(Path(in_repository(uri)).parent / link["path"])
        return relpath(in_site(target), Path(uri).parent) if (ROOT / target).is_file() else link["path"]

    return _LINK.sub(moved, markdown)
