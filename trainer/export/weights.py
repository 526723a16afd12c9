"""The trusted form of a trained network: tensors without code, and JSON that says which network they belong to."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from syncnorm import norm
from syncnorm.trainer.contract.text import name_some
from syncnorm.trainer.storage.atomic_files import sha256_of, write_atomic

logger = logging.getLogger(__name__)

WEIGHTS_FILE = "weights.safetensors"
PLAIN_FILE = "plain.safetensors"
DESCRIPTION_FILE = "model.json"


def write_weights(network: nn.Module, description: Mapping[str, Any], folder: Path) -> list[Path]:
    """Every tensor of the network's state_dict under its own key, so that plain torch can load the file.

    Beside it, a state_dict for the network as it was before its normalization was converted, where there is one; the
    description says why not. It is not among the returned files, which go to the run: it says the same again.

    safetensors holds no shared or strided tensors, so each is written whole. Entries that are no tensors are left out,
    and named in the description and in the log.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = network.state_dict()
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    left_out = sorted(state.keys() - tensors.keys())
    if left_out:
        logger.warning("%s of the state_dict are no tensors and not in %s", name_some(left_out), WEIGHTS_FILE)
    about = {"sha256": _write(folder / WEIGHTS_FILE, tensors), "left_out": left_out}
    described = {**description, "weights": about, "plain": _write_plain(network, folder)}
    write_atomic(folder / DESCRIPTION_FILE, json.dumps(described, indent=1, sort_keys=True).encode())
    return [folder / WEIGHTS_FILE, folder / DESCRIPTION_FILE]


def _write(path: Path, tensors: Mapping[str, Tensor]) -> str:
    write_atomic(path, save({name: whole_tensor(value) for name, value in tensors.items()}))
    return sha256_of(path)


def _write_plain(network: nn.Module, folder: Path) -> dict[str, str]:
    """The digest of the plain form, or why there is none."""
    try:
        plain = norm.plain_state_dict(network)
    except Exception as error:  # the job is trained: whatever a network does here, its weights are published
        logger.info("no plain form of the weights: %s", error)
        return {"reason": str(error)}
    tensors = {name: value for name, value in plain.items() if isinstance(value, Tensor)}
    return {"file": PLAIN_FILE, "sha256": _write(folder / PLAIN_FILE, tensors)}


def whole_tensor(tensor: Tensor) -> Tensor:
    """A copy with memory of its own, in rows."""
    whole = tensor.detach().cpu().to_dense() if tensor.layout != torch.strided else tensor.detach().cpu()
    return whole.as_subclass(Tensor).contiguous().clone(memory_format=torch.contiguous_format)
