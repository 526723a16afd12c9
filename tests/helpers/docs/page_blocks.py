"""The fenced blocks of a page, and what a test does with each.

A block of YAML is a spec. A block of commands or of Python runs. Any other block needs a marker above it, which is a
comment that no reader sees:

<!-- test: output -->            what the commands of this page print. Numbers, addresses and ids may differ
<!-- test: example output -->    what they print in another case
<!-- test: needs REASON -->      can't run in a test; the reasons are REASONS
<!-- test: run by tests/… -->    another test runs it
<!-- test: with PATH=VALUE -->   runs, and each job that it submits has this setting, to be shorter
<!-- test: serves URL -->        runs in the background until the page ends
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from tests.helpers.paths import ROOT

GIVEN = ROOT / "tests" / "docs" / "given"
REASONS = {
    "a bucket",
    "a cluster",
    "a GPU",
    "an installation of its own",
    "Docker",
    "the packages of vision",
}
PROGRAMS = {
    *("cat", "cp", "curl", "echo", "export", "ls", "make", "mkdir", "mlflow", "pip", "python", "source", "syncnorm"),
    "touch",
}
_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_MARKER = re.compile(r"<!-- test: (.+?) -->\s*\Z")
_CONSOLE = re.compile(r"^\$ (.*)\n", re.MULTILINE)


class Use(Enum):
    SPEC = "spec"
    COMMANDS = "commands"
    PYTHON = "Python"
    OUTPUT = "output"
    SKIPPED = "skipped"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Block:
    """A fenced block. line: where it begins. marker: what the comment above it says."""

    line: int
    language: str
    text: str
    marker: str

    @property
    def is_console(self) -> bool:
        """Whether it shows commands after a prompt, with their output."""
        return self.text.startswith("$ ")

    @property
    def commands(self) -> str:
        return "\n".join(_CONSOLE.findall(self.text)) if self.is_console else self.text

    @property
    def output(self) -> str:
        """What the block says is printed."""
        if self.use is Use.OUTPUT:
            return self.text
        return _CONSOLE.sub("", self.text) if self.is_console else ""

    @property
    def settings(self) -> list[str]:
        """To shorten its jobs."""
        return self.marker.removeprefix("with ").split() if self.marker.startswith("with ") else []

    @property
    def served_at(self) -> str | None:
        return self.marker.removeprefix("serves ") if self.marker.startswith("serves ") else None

    @property
    def use(self) -> Use:
        if self.marker == "output":
            return Use.OUTPUT
        if self.marker == "example output" or self._is_skipped:
            return Use.SKIPPED
        if self.marker and not self.settings and not self.served_at:
            return Use.UNKNOWN
        return self._by_language()

    def _by_language(self) -> Use:
        if self.language in ("yaml", "python"):
            return Use.SPEC if self.language == "yaml" else Use.PYTHON
        first = self.commands.lstrip().partition(" ")[0].split("\n")[0].partition("=")[0]
        is_command = self.language in ("", "sh", "console") and (first in PROGRAMS or "=$(syncnorm" in self.commands)
        return Use.COMMANDS if is_command else Use.UNKNOWN

    @property
    def _is_skipped(self) -> bool:
        what, _, which = self.marker.partition(" ")
        return (what == "needs" and which in REASONS) or (
            self.marker.startswith("run by tests/") and (ROOT / self.marker.removeprefix("run by ")).is_file()
        )


def blocks_of(text: str) -> Iterator[Block]:
    for fence in _FENCE.finditer(text):
        indent, language, body = fence.groups()
        marker = _MARKER.search(text[: fence.start()])
        yield Block(
            line=text.count("\n", 0, fence.start()) + 1,
            language=language,
            text="\n".join(line.removeprefix(indent) for line in body.split("\n")),
            marker=marker[1] if marker else "",
        )


def runnable_pages() -> list[Path]:
    """The pages whose commands are run, relative to the checkout."""
    found = [ROOT / "README.md"]
    for pattern in ("docs/tutorial/*.md", "docs/how-to/*.md", "examples/*/README.md"):
        found += sorted(ROOT.glob(pattern))
    return [page.relative_to(ROOT) for page in found]


def given(page: Path, suffix: str) -> str:
    """What makes the things that a page expects its reader to have: commands (.sh) or Python (.py)."""
    path = GIVEN / page.with_suffix(suffix).relative_to("docs" if page.parts[0] == "docs" else ".")
    return path.read_text() if path.exists() else ""
