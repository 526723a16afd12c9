"""The trained network of an export, built again from its description and weights, with its normalization layers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load
from torch import nn

from syncnorm.trainer.contract.spec import ModelSpec, NormSpec
from syncnorm.trainer.data.info import DataInfo
from syncnorm.trainer.export.weights import DESCRIPTION_FILE, WEIGHTS_FILE
from syncnorm.trainer.models import build_model
from syncnorm.trainer.prediction.exported_network import require_certified
from syncnorm.trainer.random_state import seeded
from syncnorm.trainer.storage.atomic_files import sha256_of
from syncnorm.trainer.training.conversion import convert_to

SEPARATE = (
    "Run the exported file by windows instead (--windows separate): its answers differ from those of joint windows at "
    "the share of voxels that certificate.json states as windows.share."
)


def load_trained(folder: Path, info: DataInfo) -> nn.Module:
    """In eval mode, in fp32 on the CPU. Raises: ValueError saying why it can't be built here, and what else you can
    do."""
    try:
        return _built(folder, info)
    except (ValueError, ImportError, RuntimeError, TypeError, OSError) as error:
        raise ValueError(
            f"joint windows need the trained network, because an exported file runs one window at a time, but it can't "
            f"be built here: {error} {SEPARATE}"
        ) from error


def _built(folder: Path, info: DataInfo) -> nn.Module:
    about = _description(folder)
    model, norm = ModelSpec.model_validate(about["model"]), NormSpec.model_validate(about["norm"])
    with seeded(0):
        network, _ = convert_to(norm, build_model(model, norm, info), None)
    network.load_state_dict(load((folder / WEIGHTS_FILE).read_bytes()))
    return network.float().eval()


def _description(folder: Path) -> Mapping[str, Any]:
    path, weights = folder / DESCRIPTION_FILE, folder / WEIGHTS_FILE
    about: dict[str, Any] = json.loads(path.read_bytes())
    if not weights.is_file():
        raise ValueError(f"{weights} must be there, got none. Get the job again (syncnorm get JOB -o DIR).")
    if about["weights"]["sha256"] != sha256_of(weights):
        raise ValueError(f"{weights} must be the file that {DESCRIPTION_FILE} names, but its digest is another one.")
    if about.get("code") is not None:
        raise ValueError("its class is in a package of code that the job brought.")
    if about["weights"]["left_out"]:
        raise ValueError("its weights lack entries that are no tensors.")
    if about["model"].get("class_path"):
        require_certified(path, is_code=True)
    return about
