"""Lowers the log level of chatty libraries, so that a job's logs hold what its owner needs."""

from __future__ import annotations

import logging
import os
import warnings

# Warnings and errors only: every heartbeat is a request, and every pass over an ONNX graph a dozen lines.
_TALKATIVE = ("httpx", "lightning.pytorch", "onnx_ir", "onnxscript")

# Warnings of one library about another, which a job can't change.
_BETWEEN_LIBRARIES = (
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    "`torch.jit.script_method` is deprecated",
    "`broadcast_buffers` is deprecated",  # what takes its place since torch 2.13 is unknown to 2.12
)


def lower_library_log_levels() -> None:
    """Set the levels for the whole process. Call it before the libraries are first used."""
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    for text in _BETWEEN_LIBRARIES:
        warnings.filterwarnings("ignore", text)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
