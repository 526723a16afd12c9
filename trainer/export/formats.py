"""Writes the trained network in formats that run elsewhere, and runs those files."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import nn

from syncnorm.trainer.storage.atomic_files import write_atomic, write_with

Array = NDArray[np.floating[Any]]
Runner = Callable[[Array], Array]

PT2_FILE = "model.pt2"
ONNX_FILE = "model.onnx"
WEIGHTS_FILE = "weights.safetensors"
DESCRIPTION_FILE = "model.json"


@dataclass(frozen=True)
class ExportedModel:
    """One file, and how to run it."""

    runtime: str
    path: Path
    run: Runner


def run_eager(network: nn.Module) -> Runner:
    """`network` itself, in eval mode, without gradients."""

    def run(x: Array) -> Array:
        network.eval()
        device = next(network.parameters(), torch.empty(0)).device
        with torch.no_grad():
            output: Array = network(torch.from_numpy(x).to(device)).float().cpu().numpy()
        return output

    return run


def write_weights(network: nn.Module, description: dict[str, Any], folder: Path) -> list[Path]:
    """The trusted form: tensors without code, and JSON that says which network they belong to."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in network.state_dict().items()}
    write_atomic(folder / WEIGHTS_FILE, save(tensors))
    write_atomic(folder / DESCRIPTION_FILE, json.dumps(description, indent=1, sort_keys=True).encode())
    return [folder / WEIGHTS_FILE, folder / DESCRIPTION_FILE]


def export(network: nn.Module, example: torch.Tensor, formats: list[str], folder: Path) -> list[ExportedModel]:
    """`network` as each of `formats`, with a dynamic batch dimension; each is loaded back from its file.

    example: an input of at least two samples (a size of one would be taken as a constant).
    Raises: ValueError if torch.export can't take the network, or only for this many samples.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not formats:
        return []
    network = network.eval()
    try:
        with torch.no_grad():
            program = torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    except Exception as error:  # torch.export has many, and few of them public
        raise ValueError(
            f"the network must be exportable for any number of samples, but torch.export says: {error} "
            "Take the number of samples from x.shape[0] (len(x) makes it a constant) and don't branch on values."
        ) from error
    exported = []
    if "pt2" in formats:
        exported.append(_write_pt2(program, folder / PT2_FILE))
    if "onnx" in formats:
        exported.append(_write_onnx(program, folder / ONNX_FILE))
    return exported


def _write_pt2(program: torch.export.ExportedProgram, path: Path) -> ExportedModel:
    write_with(path, lambda file: torch.export.save(program, file))
    # Our own file of a moment ago. A foreign pt2 is code: never load one whose digest is not in a certificate.
    module = torch.export.load(path).module()

    def run(x: Array) -> Array:
        with torch.no_grad():
            output: Array = module(torch.from_numpy(x)).float().numpy()
        return output

    return ExportedModel("torch.export", path, run)


def _write_onnx(program: torch.export.ExportedProgram, path: Path) -> ExportedModel:
    import onnxruntime

    with warnings.catch_warnings():
        # The exporter warns about its own internals (deprecated pytree calls, opset choices), not about the model.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            program,
            (),
            str(path),
            dynamo=True,
            external_data=False,
            verbose=False,
            input_names=["input"],
            output_names=["output"],
        )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(x: Array) -> Array:
        output: Array = session.run(None, {name: x})[0]
        return output

    return ExportedModel("onnxruntime", path, run)
