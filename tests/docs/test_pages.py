"""Everything a page names exists: links, files, folders, modules, make targets, commands and variables.

Each rule is a function of a text, so that a planted mistake can show that it notices.
"""

from __future__ import annotations

import importlib.util
import itertools
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer.main

from syncnorm.service.cli.main import app
from tests.helpers.paths import ROOT

FOLDERS = ("norm", "trainer", "service", "docs", "deploy", "tests", "benchmarks", "examples")
FILES = [*ROOT.glob("*.*"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.*"))]
TREE = sorted(path.relative_to(ROOT) for path in FILES if path.is_file() and path.suffix != ".pyc")
PAGES = [path for path in TREE if path.suffix == ".md"]
ROOMS = ("", "norm", "trainer", "service", "tests")
"""Where a path on a page may begin, besides the folder of the page."""
NOT_OURS = {
    *("trainer.py", "norm.py", "service/__init__.py", "job.json", "job.yaml", "spec.yaml", "flowers.yaml"),
    *("two-samples.yaml", "norm/audit.py"),
}
"""Files of a reader or of a job, and one that must not exist."""
FILE = re.compile(r"[\w./-]+\.(?:pyi?|c|ya?ml|md|ini|toml|png)")
FOLDER = re.compile(r"(?:[a-z_.]+/)+")
WRITTEN_AT_RUN_TIME = {
    "summary.md",
    ".env",
    "deploy/secrets/",
    "checkpoints/",
    "artifacts/",
    "diagnostics/",
    "logged/",
    "logged/histograms/",
}


def missing_links(page: Path, text: str) -> Iterator[str]:
    """Relative links that lead nowhere, or to a heading that the page doesn't have."""
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, heading = target.partition("#")
        file = ROOT / page.parent / path if path else ROOT / page
        if re.match(r"\w+:", target):
            continue
        if not file.exists() or (heading and heading not in _anchors(file.read_text())):
            yield target


def _anchors(text: str) -> set[str]:
    """Of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def missing_files(page: Path, text: str) -> Iterator[str]:
    """Files and folders in code spans that lie neither next to the page nor in a room."""
    for name in " ".join(re.findall(r"`([^`\n]+)`", _without_blocks(text))).split():
        is_path = FILE.fullmatch(name) or FOLDER.fullmatch(name)
        if is_path and name not in NOT_OURS | WRITTEN_AT_RUN_TIME and not _exists(page, name):
            yield name


def _without_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def _exists(page: Path, name: str) -> bool:
    """A bare file name also does, where the tree has it once."""
    places = [ROOT / page.parent, *(ROOT / room for room in ROOMS)]
    return any((place / name).exists() for place in places) or sum(path.name == name for path in TREE) == 1


def missing_modules(page: Path, text: str) -> Iterator[str]:
    """Dotted names of ours, and what a Python example imports, that can't be imported."""
    for name in re.findall(r"\bsyncnorm(?:\.[a-z_]+)+\b", text):
        if name not in NOT_MODULES and importlib.util.find_spec(name) is None:
            yield name


NOT_MODULES = {
    "syncnorm.json",
    "syncnorm.export_state",
    "syncnorm.init_from.digest",
    "syncnorm.init_from.source",
    "syncnorm.not_logged",
    "syncnorm.world_size",
    "syncnorm.world_size_changes",
    "syncnorm.worst_layer.drift",
    "syncnorm.worst_layer.variance",
}
"""A file, and tags of MLflow."""


def missing_targets(page: Path, text: str) -> Iterator[str]:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = re.findall(r"(?:`|^)make ([a-z-]+)", text, re.MULTILINE)
    yield from (name for name in named if name not in targets)


def unknown_commands(page: Path, text: str) -> Iterator[str]:
    """Verbs and options of `syncnorm` that the command line doesn't have."""
    for line in re.findall(r"(?:(?<=/bin/)|(?<!/)(?<!from ))\bsyncnorm ([a-z-][^`\n#|&]*)", _code(text)):
        verb, options, values = _command(line.split())
        wanted = [word.partition("=")[0] for word in line.split() if re.match(r"--?[a-z]", word)]
        yield from ([f"syncnorm {line}"] if verb is None else [])
        yield from (f"syncnorm {line.strip()}: {name}" for name in wanted if verb is not None and name not in options)
        yield from (f"syncnorm {line.strip()}: takes no {word}" for word in _unexpected(line.split(), values))


def _code(text: str) -> str:
    """The code of a page: its blocks and its spans, one to a line."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    return "\n".join([*blocks, *(f"`{span}`" for span in re.findall(r"`([^`\n]+)`", _without_blocks(text)))])


@cache
def _cli() -> Any:
    return typer.main.get_command(app)


def _command(words: list[str]) -> tuple[str | None, set[str], list[str] | None]:
    """The verb that these words begin with, its options, and those with a value if it takes no argument.

    None for the verb: there is no such one. None at the end: the verb takes arguments, or is a family.
    """
    found = _cli()
    for word in words:
        if not hasattr(found, "commands"):
            break
        if word in {"--version", "-h", "--help", "--install-completion"}:
            return word, {word}, None
        if word not in found.commands:
            return None, set(), None
        found = found.commands[word]
    options = {"-h", "--help", *(name for one in found.params for name in (*one.opts, *one.secondary_opts))}
    takes_none = not hasattr(found, "commands") and all(one.opts[0].startswith("-") for one in found.params)
    return found.name, options, [o for one in found.params if not one.is_flag for o in one.opts] if takes_none else None


def _unexpected(words: list[str], values: list[str] | None) -> Iterator[str]:
    """Arguments in a command whose verb takes none. values: its options that are followed by one."""
    if values is not None:
        verb = 2 if words[0] in {name for name, one in _cli().commands.items() if hasattr(one, "commands")} else 1
        for before, word in itertools.pairwise(words[verb - 1 :]):
            if re.match(r"[A-Za-z]", word) and before not in values:
                yield word


def unknown_variables(page: Path, text: str) -> Iterator[str]:
    """SYNCNORM_ variables that nothing in the tree reads."""
    named = re.findall(r"\bSYNCNORM_[A-Z_]*[A-Z]\b", text)
    yield from (name for name in named if name not in _read_variables())


@cache
def _read_variables() -> frozenset[str]:
    sources = [path for path in TREE if path.suffix in {".py", ".yml"} and path.name != Path(__file__).name]
    scripts = [ROOT / "deploy" / name for name in ("Dockerfile", "entrypoint", "init-secrets")]
    texts = (path.read_text() for path in (*(ROOT / path for path in sources), *scripts))
    return frozenset(name for text in texts for name in re.findall(r"\bSYNCNORM_[A-Z_]*[A-Z]\b", text))


RULES = (missing_links, missing_files, missing_modules, missing_targets, unknown_commands, unknown_variables)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("page", PAGES, ids=str)
def test_page_names_only_what_exists(page: Path, rule: Callable[[Path, str], Iterator[str]]) -> None:
    assert list(rule(page, (ROOT / page).read_text())) == []


def test_index_names_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    pages = [str(page.relative_to("docs")) for page in PAGES if page.parent.parent == Path("docs")]

    assert pages
    assert [page for page in pages if f"]({page})" not in index] == []


@pytest.mark.parametrize(
    ("rule", "wrong", "right"),
    [
        (missing_links, "[a](../docs/none.md)", "[a](../README.md)"),
        (missing_links, "[a](../README.md#no-such-heading)", "[a](../README.md#try-it)"),
        (missing_files, "`jobs/loop.py`", "`jobs/lifecycle.py`"),
        (missing_files, "`room/`", "`reconciler/`"),
        (missing_files, "`no_such_errors.py`", "`lifecycle.py`"),
        (missing_modules, "syncnorm.service.again", "syncnorm.service.jobs"),
        (missing_targets, "`make everything`", "`make test`"),
        (unknown_commands, "`syncnorm tell JOB`", "`syncnorm study ls`"),
        (unknown_commands, "`syncnorm logs JOB --loud`", "`syncnorm logs JOB --follow`"),
        (unknown_commands, "`syncnorm datasets nifti`", "`syncnorm ls --state failed`"),
        (unknown_commands, "```\n$ .venv/bin/syncnorm study pardon\n```", "```\n$ .venv/bin/syncnorm ls\n```"),
        (unknown_variables, "`SYNCNORM_MOOD`", "`SYNCNORM_HOME`"),
    ],
)
def test_rule_notices_a_name_that_does_not_exist(
    rule: Callable[[Path, str], Iterator[str]], wrong: str, right: str
) -> None:
    page = Path("service/README.md")

    assert list(rule(page, wrong))
    assert not list(rule(page, right))
