"""The commands that a README shows, run as a reader would."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

from tests.helpers.paths import ROOT


def commands_of(readme: Path) -> list[str]:
    """The lines of its first block of commands."""
    return readme.read_text().partition("```\n")[2].partition("```")[0].strip().splitlines()


def shell(command: str, **environment: str) -> str:
    """What a command of the README prints; programs are those of this Python."""
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = command.replace("syncnorm ", f"{shlex.quote(sys.executable)} -m syncnorm.service.cli.main ")
    done = subprocess.run(
        command,
        shell=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        env={**os.environ, "PATH": programs, "SYNCNORM_TOKEN": "", **environment},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
