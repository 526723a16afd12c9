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

from syncnorm.trainer.contract.text import name_some
from syncnorm.trainer.storage.atomic_files import sha256_of, write_atomic

logger = logging.getLogger(__name__)

WEIGHTS_FILE = "weights.safetensors"
DESCRIPTION_FILE = "model.json"


def write_weights(network: nn.Module, description: Mapping[str, Any], folder: Path) -> list[Path]:
    """Every tensor of the network's state_dict under its own key, so that plain torch can load the file.

    safetensors holds no shared or strided tensors, so each is written whole. Entries that are no tensors are left out,
    and named in the description and in the log.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = network.state_dict()
    tensors = {name: _plain(value) for name, value in state.items() if isinstance(value, Tensor)}
    left_out = sorted(state.keys() - tensors.keys())
    if left_out:
        logger.warning("%s of the state_dict are no tensors and not in %s", name_some(left_out), WEIGHTS_FILE)
    write_atomic(folder / WEIGHTS_FILE, save(tensors))
    about = {"sha256": sha256_of(folder / WEIGHTS_FILE), "left_out": left_out}
    content = json.dumps({**description, "weights": about}, indent=1, sort_keys=True)
    write_atomic(folder / DESCRIPTION_FILE, content.encode())
    return [folder / WEIGHTS_FILE, folder / DESCRIPTION_FILE]


def _plain(tensor: Tensor) -> Tensor:
    whole = tensor.detach().cpu().to_dense() if tensor.layout != torch.strided else tensor.detach().cpu()
    return whole.as_subclass(Tensor).contiguous().clone(memory_format=torch.contiguous_format)
