"""The network of an export as a function of tensors: its ONNX file, or else its pt2 file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from syncnorm.trainer.export.certification import CERTIFICATE_FILE
from syncnorm.trainer.export.formats import ONNX_FILE, PT2_FILE
from syncnorm.trainer.storage.atomic_files import sha256_of
from syncnorm.trainer.training.tasks.main_output import NAMES, main_output

Network = Callable[[Tensor], Tensor]
_KINDS = {".pt2": "a pt2 file", ".json": "the class that it names"}


def load_network(folder: Path) -> Network:
    """Gives the main output for a batch, both in fp32 on the CPU.

    Raises: ValueError if there is neither file, or not the one that the certificate names.
    """
    if (path := folder / ONNX_FILE).is_file():
        require_certified(path, is_code=False)
        return _of_onnx(path)
    if (path := folder / PT2_FILE).is_file():
        require_certified(path, is_code=True)
        return _of_pt2(path)
    raise ValueError(
        f"{folder} must hold {ONNX_FILE} or {PT2_FILE}, got neither. Export the job with one of these formats "
        "(syncnorm export JOB --format onnx), and get it again."
    )


def _of_onnx(path: Path) -> Network:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (taken,), given = session.get_inputs(), [output.name for output in session.get_outputs()]
    main = next((name for word in NAMES for name in given if name == f"output_{word}"), given[0])
    return lambda x: torch.from_numpy(session.run([main], {taken.name: x.numpy()})[0])


def _of_pt2(path: Path) -> Network:
    module = torch.export.load(path).module()

    def run(x: Tensor) -> Tensor:
        with torch.no_grad():
            return main_output(module(x))

    return run


def require_certified(path: Path, *, is_code: bool) -> None:
    """is_code: loading the file can run code, so it must be the one that was certified."""
    proof = path.parent / CERTIFICATE_FILE
    if not proof.is_file():
        if is_code:
            raise ValueError(
                f"{path} must come with its {CERTIFICATE_FILE}, because {_KINDS[path.suffix]} can run code."
            )
        return
    if json.loads(proof.read_bytes()).get("files", {}).get(path.name) != sha256_of(path):
        raise ValueError(f"{path} must be the file that {CERTIFICATE_FILE} names, but its digest is another one.")
