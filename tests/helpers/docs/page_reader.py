"""Someone who types what a page says: one shell and one Python, in a folder of their own."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from tests.helpers.docs import python_blocks
from tests.helpers.docs.page_blocks import Block, Use
from tests.helpers.paths import SOURCE

_NUMBER = re.compile(r"[(~]?[-+]?[\d.,:]+(e[-+]?\d+)?[%),.:]*")
_ADDRESS = re.compile(r"\S*:/\S*|\S*…\S*|\S*[0-9a-f]{12,}\S*|job_\S+")
_COMMAND_S = 900
_FIELD = "syncnorm show last --json | python -c 'import json, sys; print(json.load(sys.stdin){})'"
_STAND_INS = {
    r"\bJOB\b": "echo last",
    r"\bmodels:/m-[0-9a-f]{32}\b": _FIELD.format('["model"]["uri"]'),
    r"\bhttp://127\.0\.0\.1:8000\b": "python -c 'import json, os, pathlib; "
    'print(json.loads((pathlib.Path(os.environ["SYNCNORM_HOME"]) / "service.json").read_text())["url"])\'',
    r"\bhttp://127\.0\.0\.1:5000\b": _FIELD.format('["mlflow"]["url"].partition("/#")[0]'),
}
"""What pages write for something that the reader has: how to find it here."""


class Reader:
    """home: the state folder of the service that they use. shown: all that was printed so far."""

    def __init__(self, folder: Path, home: Path, printed: str = "") -> None:
        self.shown = printed
        self._folder = folder
        self._variables = folder / ".variables"
        self._background: list[subprocess.Popen[bytes]] = []
        self._python: subprocess.Popen[str] | None = None
        programs = folder / ".bin"
        programs.mkdir()
        _write_program(programs / "syncnorm")
        self._environment = {key: value for key, value in os.environ.items() if not key.startswith("SYNCNORM_")} | {
            "SYNCNORM_HOME": str(home),
            "PYTHONPATH": str(SOURCE),
            "PATH": os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]]),
        }

    def follow(self, block: Block) -> None:
        """Do what a block says, and compare what it shows."""
        if block.use is Use.COMMANDS:
            self.type(self._filled(block.commands), block.settings, block.served_at)
        elif block.use is Use.PYTHON:
            self.run(block.text)
        for line in missing_lines(block.output, self.shown):
            raise AssertionError(f"line {block.line} shows {line!r}, which was not printed:\n{self.shown[-5000:]}")

    def _filled(self, commands: str) -> str:
        """Commands in which the examples' names, addresses and models are those of this service."""
        for at, (pattern, find) in enumerate(_STAND_INS.items()):
            if re.search(pattern, commands):
                self.type(f"stand_in_{at}=$({find})")
                commands = re.sub(pattern, f"$stand_in_{at}", commands)
        return commands

    def type(self, commands: str, settings: list[str] | None = None, served_at: str | None = None) -> None:
        """Run commands. Variables and the folder stay for the next ones. served_at: leave them running."""
        environment = {**self._environment, "PAGE_SETTINGS": " ".join(f"--set {one}" for one in settings or [])}
        if served_at:
            self._serve(commands, served_at, environment)
            return
        script = f"set -ea -o pipefail\n[ ! -e {self._variables} ] || . {self._variables}\n{commands}\n"
        script += f"export -p | grep -v ' PAGE_SETTINGS=' > {self._variables}"
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=self._folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=_COMMAND_S,
        )
        self.shown += done.stdout
        assert done.returncode == 0, f"{commands}\nended with {done.returncode}:\n{done.stdout[-5000:]}"

    def run(self, program: str) -> None:
        """Run Python, with the names of the blocks before."""
        if not program:
            return
        if self._python is None:
            self._python = subprocess.Popen(
                ["bash", "-c", f". {self._variables}; exec {shlex.quote(sys.executable)} {python_blocks.__file__}"],
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        assert self._python.stdin is not None
        assert self._python.stdout is not None
        self._python.stdin.write(json.dumps(program) + "\n")
        self._python.stdin.flush()
        printed = ""
        for line in self._python.stdout:
            if line.startswith(python_blocks.ENDED):
                self.shown += printed
                assert line.strip() == f"{python_blocks.ENDED} well", f"{program}\nfailed:\n{printed}"
                return
            printed += line
        raise AssertionError(f"{program}\nended Python:\n{printed}")

    def _serve(self, command: str, url: str, environment: dict[str, str]) -> None:
        script = f"[ ! -e {self._variables} ] || . {self._variables}\n{command}"
        with (self._folder / ".served").open("wb") as log:
            self._background.append(
                subprocess.Popen(
                    ["bash", "-c", script],
                    cwd=self._folder,
                    env=environment,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )
        deadline = time.monotonic() + 120
        while not _answers(url):
            assert time.monotonic() < deadline, (self._folder / ".served").read_text()
            time.sleep(0.5)

    def leave(self) -> None:
        """End what was left running."""
        for process in self._background:
            os.killpg(process.pid, 15)
            process.wait(30)
        if self._python is not None:
            self._python.communicate(timeout=30)


def _write_program(path: Path) -> None:
    """`syncnorm` of this checkout. It adds settings that shorten what is submitted."""
    command = f"{shlex.quote(sys.executable)} -m syncnorm.service.cli.main"
    path.write_text(
        f'#!/bin/sh\nexport PYTHONPATH={SOURCE}\ncase "$1" in submit) exec {command} "$@" $PAGE_SETTINGS ;; esac\n'
        f'exec {command} "$@"\n'
    )
    path.chmod(0o755)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def missing_lines(expected: str, printed: str) -> list[str]:
    """Lines of a page that nothing printed. Any number stands for any other, and so do addresses, ids and `…`."""
    flat = " ".join(printed.split())
    return [line for line in expected.splitlines() if line.strip() and not re.search(_pattern(line), flat)]


def _pattern(line: str) -> str:
    words = []
    for word in line.split():
        if word == "…":
            words.append(".*?")
        else:
            words.append(r"\S+" if _NUMBER.fullmatch(word) or _ADDRESS.fullmatch(word) else re.escape(word))
    return " ".join(words)
