"""What service and workers need alike to speak with MLflow (mlflow 3.17): names, and the account."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

LONGEST_NAME = 250
LAYERS = "z_norm_layers"
"""First part of the metrics of single layers. MLflow sorts its charts by name, so they come after `train` and `val`."""
EARLIER_LAYERS = "norm"
"""The same in runs of earlier versions."""
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


def layer_metric(layer: str, what: str) -> str:
    """Name of a metric of one normalization layer. what: running_mean_abs, running_var_mean or drift.

    >>> layer_metric("layer1.0.bn1", "drift")
    'z_norm_layers/layer1.0.bn1/drift'
    """
    return f"{LAYERS}/{layer}/{what}"


def read_layer_metric(name: str) -> tuple[str, str]:
    """Layer and what is measured of it; the layer is empty where the name is that of another metric.

    >>> read_layer_metric("z_norm_layers/bn1/drift"), read_layer_metric("norm/bn1/drift"), read_layer_metric("val/loss")
    (('bn1', 'drift'), ('bn1', 'drift'), ('', 'loss'))
    """
    head, _, what = name.rpartition("/")
    start, _, layer = head.partition("/")
    return (layer if start in (LAYERS, EARLIER_LAYERS) else ""), what


def system_metric(rank: int, name: str) -> str:
    """Name of what a rank uses. MLflow draws the same metric of all its `node_N` in one chart.

    >>> system_metric(1, "cpu_utilization_percentage")
    'system/node_1/cpu_utilization_percentage'
    """
    return f"system/node_{rank}/{name}"


def mlflow_account() -> tuple[str, str] | None:
    """User and password from the variables of MLflow's own client; None if the server needs no account.

    The password may also be in the file that MLFLOW_TRACKING_PASSWORD_FILE names.
    """
    user, password = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_PASSWORD")
    if path := os.environ.get("MLFLOW_TRACKING_PASSWORD_FILE"):
        password = Path(path).read_text().strip()
    return (user, password) if user and password else None
