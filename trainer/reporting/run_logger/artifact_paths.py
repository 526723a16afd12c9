"""Paths of logged files in the run: safe on every file system, and the same again after a resume. Pure."""

from __future__ import annotations

import hashlib
import re
from pathlib import PurePosixPath

LOGGED = "logged"
OF_THE_JOB = frozenset({"spec.yaml", "plan.json", "norm", "diagnostics", "export", "model", LOGGED})
"""What the service itself keeps at the top of a run. A user's file of such a name goes below `logged/`."""
_LONGEST_PART_BYTES = 100
_DEEPEST = 8
_REFUSED = re.compile(r"[^\w\-. ]")
_TEMPORARY = ".tmp-"
"""Files of such a name are never copied; see syncnorm.trainer.storage.atomic_files."""


def artifact_path(name: str) -> str:
    """The path that a user gave a file, below `logged/` where its first part is the job's own.

    >>> artifact_path("confusion/epoch_3.png"), artifact_path("spec.yaml")
    ('confusion/epoch_3.png', 'logged/spec.yaml')
    """
    path = safe_path(name)
    return f"{LOGGED}/{path}" if path.split("/")[0] in OF_THE_JOB else path


def safe_path(name: str) -> str:
    """`name` as a relative path that leads nowhere else.

    One that had to be changed gets a digest, so that two different names never share a file.

    >>> safe_path("../../etc/passwd")
    'etc/passwd-3754d6cb'
    """
    named = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".", "..")] or ["unnamed"]
    parts = [_safe(part) for part in (*named[: _DEEPEST - 1], "_".join(named[_DEEPEST - 1 :])) if part]
    if "/".join(parts) != name:
        path = PurePosixPath(parts[-1])
        parts[-1] = f"{path.stem}-{_digest(name)}{path.suffix}"
    return "/".join(parts)


def step_path(kind: str, tag: str, step: int, suffix: str) -> str:
    """The path of something without a file name of its own: `logged/text/notes/step-00000012.txt`."""
    return f"{LOGGED}/{kind}/{safe_path(tag)}/step-{step:08d}{suffix}"


def image_path(key: str, step: int, index: int = 0) -> str:
    """The path of an image without its suffix, as MLflow names those that its page shows with a slider of steps.

    MLflow puts time and a random id into the name. Here both follow from the key, so that a resumed attempt overwrites
    the image instead of adding it again.

    >>> image_path("val/x", 12)
    'images/val~x+step+12+timestamp+12+ice8dc80a-0'
    """
    shown = _cut("~".join(_clean(part) for part in key.split("/")))
    return f"images/{shown}+step+{step}+timestamp+{step}+i{_digest(key)}-{index}"


def _safe(part: str) -> str:
    """A part of a path without what a file system or MLflow refuses, cut to what both hold."""
    return _cut(_clean(part).strip() or "_")


def _clean(part: str) -> str:
    return _REFUSED.sub("_", part.replace(_TEMPORARY, "_tmp-"))


def _cut(clean: str) -> str:
    if len(clean.encode(errors="replace")) <= _LONGEST_PART_BYTES:
        return clean
    path = PurePosixPath(clean)
    suffix = path.suffix if len(path.suffix) <= 10 else ""
    return clean.encode()[: _LONGEST_PART_BYTES - len(suffix.encode())].decode(errors="ignore") + suffix


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode(errors="replace")).hexdigest()[:8]
