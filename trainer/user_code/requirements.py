"""What a job's code needs besides what this host has: installed by pip into a layer of its own, once for all jobs."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import site
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from syncnorm.trainer.contract.spec import CodeSpec
from syncnorm.trainer.contract.spec.requirement_lines import lines_of_file, parsed

logger = logging.getLogger(__name__)

RESOLVED = "requirements.txt"
"""Beside the installed modules: the exact versions."""
_UNREACHABLE = ("Failed to establish a new connection", "Name or service not known", "Temporary failure in name resol")


class RequirementsError(ValueError):
    """The requirements of a job can't be met."""


def put_requirements_on_path(code: CodeSpec | None, package: Path) -> Path | None:
    """Install what `code` asks for, unless this host has it, and let this process import it after everything else.

    package: the unpacked package. Returns the layer, or None if nothing is asked for.
    Raises: RequirementsError.
    """
    if code is None or code.requirements is None:
        return None
    layer = layer_of(requirement_lines(code.requirements, package))
    if str(layer) not in sys.path:
        site.addsitedir(str(layer))
    return layer


def requirement_lines(requirements: Sequence[str] | str, package: Path) -> list[str]:
    """Raises: RequirementsError."""
    try:
        if not isinstance(requirements, str):
            lines = list(requirements)
        else:
            lines = lines_of_file(requirements, _text_in(package, requirements))
        parsed(lines)
    except (OSError, KeyError) as error:
        raise RequirementsError(f"code.requirements: the package must hold {requirements}, but: {error}.") from error
    except ValueError as error:
        raise RequirementsError(f"code.requirements: {error}.") from error
    return lines


def _text_in(package: Path, name: str) -> str:
    if package.is_dir():
        return (package / name).read_text()
    with zipfile.ZipFile(package) as archive:
        return archive.read(name).decode()


def layer_of(lines: Sequence[str]) -> Path:
    """The folder with what `lines` need besides what is installed here. Installed once, whoever asks at the same time.

    Raises: RequirementsError.
    """
    pins = _installed_versions()
    about = json.dumps([sorted(lines), pins, sys.version])
    folder = _root() / hashlib.sha256(about.encode()).hexdigest()[:32]
    with _locked(folder.with_suffix(".lock")):
        if not folder.is_dir():
            unfinished = Path(tempfile.mkdtemp(prefix=f"{folder.name}-", dir=folder.parent))
            try:
                _install(lines, pins, unfinished)
                unfinished.rename(folder)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _installed_versions() -> list[str]:
    """Those of this host alone, also once a layer is on the path."""
    own = (one for one in distributions() if not Path(str(one.locate_file(""))).is_relative_to(_root()))
    return sorted({f"{one.metadata['Name']}=={one.version}" for one in own if one.metadata["Name"]})


def _root() -> Path:
    base = os.environ.get("SYNCNORM_SCRATCH") or tempfile.gettempdir()
    root = Path(base) / f"syncnorm-requirements-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    if root.stat().st_uid != os.getuid():
        raise RequirementsError(f"{root} must belong to the user that runs jobs, but somebody else has made it.")
    return root


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _install(lines: Sequence[str], pins: Sequence[str], into: Path) -> None:
    """Resolve against what is installed, then install what is missing, and nothing else."""
    with tempfile.TemporaryDirectory() as folder:
        asked, kept, report = (Path(folder) / name for name in ("asked.txt", "kept.txt", "report.json"))
        asked.write_text("\n".join(lines))
        kept.write_text("\n".join(pins))
        _pip("install", "--dry-run", "--report", str(report), "-r", str(asked), "-c", str(kept))
        missing = json.loads(report.read_text())["install"]
        logger.info("installing requirements: %s", ", ".join(map(_pinned, missing)) or "all are installed already")
        (into / RESOLVED).write_text("".join(f"{_pinned(one)}\n" for one in missing))
        if missing:
            asked.write_text("\n".join(map(_source, missing)))
            _pip("install", "--no-deps", "--target", str(into), "-r", str(asked))


def _pinned(one: dict[str, Any]) -> str:
    return f"{one['metadata']['name']}=={one['metadata']['version']}"


def _source(one: dict[str, Any]) -> str:
    """As pip has found it: by its address, where it was given by one."""
    if one.get("is_direct"):
        return f"{one['metadata']['name']} @ {one['download_info']['url']}"
    return _pinned(one)


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=_environment())
    if done.returncode == 0:
        return
    conflict = re.search(r"The conflict is caused by:\s*(.*?)\s*(?:To fix this|$)", done.stdout, re.DOTALL)
    said = " / ".join((conflict.group(1) if conflict else done.stderr).split("\n")).strip()
    if any(sign in done.stderr for sign in _UNREACHABLE):
        raise RequirementsError(
            "code.requirements: the package index can't be reached from this host. An operator can set another one for "
            f"the workers, such as PIP_INDEX_URL. pip says: {said[-600:]}"
        )
    raise RequirementsError(
        f"code.requirements can't be met beside what the workers have, which stays as it is. pip says: {said[-1500:]}"
    )


def _environment() -> dict[str, str]:
    """Without what Python itself is told, and with permission to look at an environment that a system manages."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return kept | {"PIP_BREAK_SYSTEM_PACKAGES": "1"}
