"""What service and workers need alike to speak with MLflow: names that it takes (mlflow 3.17), and the account."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

LONGEST_NAME = 250
_REFUSED = re.compile(r"[^\w\-./ :]")
_NO_FOLDER = ("", ".", "..")


def mlflow_name(name: str) -> str:
    """`name` with `_` for what MLflow refuses, and cut to its limit; one it takes stays as it is.

    MLflow also refuses names that would be another path: `a//b`, `/a`, `a/../b`.

    >>> mlflow_name("person (adult)/f1"), mlflow_name("/a//b"), mlflow_name("")
    ('person _adult_/f1', '_/a/_/b', '_')
    """
    clean = "/".join("_" if part in _NO_FOLDER else part for part in _REFUSED.sub("_", name).split("/"))
    if clean.startswith(".."):
        clean = f"_{clean[1:]}"
    if len(clean) <= LONGEST_NAME:
        return clean
    digest = hashlib.sha256(name.encode(errors="replace")).hexdigest()[:8]
    return f"{clean[: LONGEST_NAME - 9]}-{digest}"


def mlflow_account() -> tuple[str, str] | None:
    """User and password from the variables of MLflow's own client; None if the server needs no account.

    The password may also be in the file that MLFLOW_TRACKING_PASSWORD_FILE names.
    """
    user, password = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_PASSWORD")
    if path := os.environ.get("MLFLOW_TRACKING_PASSWORD_FILE"):
        password = Path(path).read_text().strip()
    return (user, password) if user and password else None
