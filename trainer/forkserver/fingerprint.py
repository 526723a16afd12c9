"""What a parent was made from: once any of it changes, forked processes would differ from ones that start anew."""

from __future__ import annotations

import hashlib
import json
import os
import site
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from syncnorm.import_path import PACKAGE


def fingerprint(environment: Mapping[str, str]) -> str:
    """Digest of this Python, the working folder, the environment, our code and the installed packages, as they are on
    the disk now. Takes some 10 ms."""
    about = [sys.executable, sys.version, str(Path.cwd()), sorted(environment.items()), *_code(), *_installed()]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()


def _code() -> Iterator[tuple[str, int, int]]:
    """Name, time of the last change and size of each file of this package."""
    for folder, _, names in os.walk(PACKAGE, followlinks=True):
        for path in (Path(folder, name) for name in sorted(names) if name.endswith(".py")):
            status = path.stat()
            yield str(path), status.st_mtime_ns, status.st_size


def _installed() -> Iterator[tuple[str, int]]:
    """Folders of installed packages. pip changes their time whenever it installs or removes one."""
    for folder in [*site.getsitepackages(), site.getusersitepackages()]:
        if Path(folder).is_dir():
            yield folder, Path(folder).stat().st_mtime_ns
