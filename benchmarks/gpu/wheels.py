"""Downloads the wheels that a machine with a GPU lacks, in folders small enough to be brought there one by one.

The versions are those installed here. Packages that the machine has are left out. What the tests need lies in the first
folder.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterator, Sequence
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks.gpu.installation import split

TESTS = ("pydantic", "jsonargparse", "typer", "pyyaml", "httpx")
SERVICE = (
    *("ray[default,train]", "mlflow[auth]", "fastapi", "fastapi-offline", "uvicorn", "httptools", "sqlalchemy"),
    *("alembic", "psycopg[binary]", "prometheus-client", "cryptography", "onnxscript", "jinja2"),
)
LARGEST = 50 * 2**20
"""Bytes of a folder, and of a part of a wheel: with the checkout they stay under 64 MiB."""
_PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_24", "manylinux_2_17", "manylinux_2_5")
_OLD = ("manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64")
_ENVIRONMENT = {"python_version": "3.12", "python_full_version": "3.12.3", "sys_platform": "linux"}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path(".wheels"))
    parser.add_argument("--there", type=Path, required=True, help="what the machine has, a name a line, as pip list")
    options = parser.parse_args(arguments)
    there = {canonicalize_name(line.split()[0]) for line in options.there.read_text().splitlines() if line.strip()}
    first = closure(TESTS, there)
    wheels = _download(sorted(first | closure(SERVICE, there)), options.folder)
    ordered = sorted(wheels, key=lambda wheel: (_package_of(wheel) not in first, -wheel.stat().st_size))
    files = [part for wheel in ordered for part in split(wheel, LARGEST)]
    for number, group in enumerate(divide(files, LARGEST), 1):
        part = options.folder / f"part-{number}"
        part.mkdir(exist_ok=True)
        for file in group:
            shutil.move(file, part / file.name)
        print(f"{part}: {len(group)} files, {_size(list(part.iterdir())) / 2**20:.0f} MiB")


def closure(wanted: Sequence[str], there: Collection[str]) -> set[str]:
    """The packages behind `wanted`, as installed here, without those that are `there` and what these need."""
    found: set[str] = set()
    waiting = [Requirement(each) for each in wanted]
    handled: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        requirement = waiting.pop()
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if key in handled or (key[0] in there and not requirement.extras):
            continue
        handled.add(key)
        found.add(key[0])
        waiting += _requirements(requirement)
    return found.difference(there)


def _requirements(requirement: Requirement) -> Iterator[Requirement]:
    try:
        needs = metadata.requires(requirement.name) or []
    except metadata.PackageNotFoundError:
        return
    for need in map(Requirement, needs):
        extras = requirement.extras or {""}
        if need.marker is None or any(need.marker.evaluate({**_ENVIRONMENT, "extra": extra}) for extra in extras):
            yield need


def _download(names: Sequence[str], folder: Path) -> list[Path]:
    platforms = [f"{each}_x86_64" for each in _PLATFORMS] + list(_OLD)
    pins = [f"{name}=={metadata.version(name)}" for name in names]
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(folder)]
    command += ["--python-version", "3.12", "--implementation", "cp"]
    command += [word for platform in platforms for word in ("--platform", platform)]
    subprocess.run([*command, *pins], check=True)
    return list(folder.glob("*.whl"))


def _package_of(wheel: Path) -> str:
    return canonicalize_name(wheel.name.partition("-")[0])


def divide(files: Sequence[Path], largest: int) -> list[list[Path]]:
    """In groups of at most `largest` bytes, each file in the first one that has space for it."""
    groups: list[list[Path]] = []
    for file in files:
        fitting = (group for group in groups if _size([*group, file]) <= largest)
        group = next(fitting, None)
        if group is None:
            groups.append([file])
        else:
            group.append(file)
    return groups


def _size(files: Sequence[Path]) -> int:
    return sum(file.stat().st_size for file in files)


if __name__ == "__main__":
    main()
