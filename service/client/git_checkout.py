"""Where a job file comes from: its name, and the git checkout around it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

_TIMEOUT_S = 5.0


def source_of(file: Path) -> dict[str, Any] | None:
    """The `source` of a job submitted from `file`; `-` stands for standard input, and then the current folder counts.

    None: nothing is known.
    """
    is_file = file != Path("-")
    here = file.resolve() if is_file else Path.cwd()
    folder = here.parent if is_file else here
    if (top := _git(folder, "rev-parse", "--show-toplevel")) is None:
        return {"name": file.name} if is_file else None
    branch, origin = _git(folder, "rev-parse", "--abbrev-ref", "HEAD"), _git(folder, "remote", "get-url", "origin")
    found = {
        "name": os.path.relpath(here, top) if is_file else None,
        "repository": public_url(origin) if origin else None,
        "commit": _git(folder, "rev-parse", "HEAD"),
        "branch": branch if branch != "HEAD" else None,
        "dirty": bool(_git(folder, "status", "--porcelain", "--untracked-files=no")),
    }
    return {name: value for name, value in found.items() if value}


def public_url(url: str) -> str | None:
    """A repository's address without user, password and query; None for a path on this machine.

    >>> public_url("https://ann:secret@host/team/nets.git"), public_url("git@host:team/nets.git"), public_url("/srv/x")
    ('https://host/team/nets.git', 'ssh://host/team/nets.git', None)
    """
    parts = urlsplit(url)
    if parts.scheme in ("http", "https", "ssh", "git") and parts.hostname:
        port = f":{parts.port}" if parts.port else ""
        return f"{parts.scheme}://{parts.hostname}{port}{parts.path}"
    host, colon, path = url.rpartition("@")[2].partition(":")
    return f"ssh://{host}/{path.lstrip('/')}" if colon and "/" not in host and not parts.netloc else None


def _git(folder: Path, *arguments: str) -> str | None:
    """What git answers; None without git, outside a checkout, or if it takes long."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=True,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout.strip()
