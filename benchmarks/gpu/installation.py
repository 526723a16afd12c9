"""Wheels that were brought to a machine without a package index, joined and unpacked."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import IO

SITE = Path("/tmp/syncnorm-site")
"""Where they are unpacked: the machine's own packages stay as they are."""
PART = re.compile(r"(?P<wheel>.+\.whl)\.(?P<number>\d+)-of-(?P<count>\d+)")
"""The name of a part of a large wheel."""


def install(wheels: Path, log: IO[str]) -> Path:
    """Unpack all wheels below `wheels`, in however many folders. The folder to import them from."""
    join(wheels)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile", "--upgrade"]
    found = sorted(map(str, wheels.rglob("*.whl")))
    subprocess.run([*pip, "--target", str(SITE), *found], check=True, stdout=log, stderr=log)
    return SITE


def join(wheels: Path) -> None:
    """Make one file of the parts of each wheel whose parts are all there."""
    parts: dict[str, dict[int, Path]] = {}
    for path in wheels.rglob("*.whl.*"):
        if found := PART.fullmatch(path.name):
            parts.setdefault(f"{found['wheel']} {found['count']}", {})[int(found["number"])] = path
    for key, of_wheel in parts.items():
        name, count = key.rsplit(" ", 1)
        if len(of_wheel) == int(count):
            (wheels / name).write_bytes(b"".join(of_wheel[number].read_bytes() for number in sorted(of_wheel)))


def split(wheel: Path, largest: int) -> list[Path]:
    """`wheel` itself, or its parts of at most `largest` bytes in its place."""
    content = wheel.read_bytes()
    if len(content) <= largest:
        return [wheel]
    pieces = [content[start : start + largest] for start in range(0, len(content), largest)]
    parts = [wheel.with_name(f"{wheel.name}.{number}-of-{len(pieces)}") for number, _ in enumerate(pieces, 1)]
    for part, piece in zip(parts, pieces, strict=True):
        part.write_bytes(piece)
    wheel.unlink()
    return parts
