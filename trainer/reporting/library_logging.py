"""Libraries that speak of themselves, kept out of a job's logs: what is left there is meant for its owner."""

from __future__ import annotations

import logging
import os
import warnings

# Of these, warnings and errors only: every heartbeat is a request, every pass over an ONNX graph a dozen lines.
_TALKATIVE = ("httpx", "lightning.pytorch", "onnx_ir", "onnxscript")

# Said by one library of another: nothing that a job could change.
_BETWEEN_LIBRARIES = (
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    "`torch.jit.script_method` is deprecated",
    "`broadcast_buffers` is deprecated",  # what takes its place since torch 2.13 is unknown to 2.12
)


def lower_library_log_levels() -> None:
    """For the whole process; called before the libraries are first used."""
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    for text in _BETWEEN_LIBRARIES:
        warnings.filterwarnings("ignore", text)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
