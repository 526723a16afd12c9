"""Writes the trained network in formats that run elsewhere, and runs those files."""

from __future__ import annotations

import inspect
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_leaves

from syncnorm.trainer.contract.failure import ExportReason
from syncnorm.trainer.errors import NoExportError
from syncnorm.trainer.export import samples
from syncnorm.trainer.export.detectors.suppression import exportable_suppression
from syncnorm.trainer.export.forward_inputs import ForwardInputs
from syncnorm.trainer.export.outputs import Array, DictAnswers, Outputs, has_records, to_arrays
from syncnorm.trainer.storage.atomic_files import write_with

Runner = Callable[[ForwardInputs], Outputs]

logger = logging.getLogger(__name__)

PT2_FILE = "model.pt2"
ONNX_FILE = "model.onnx"


@dataclass(frozen=True)
class OnnxNames:
    """What an ONNX file calls the tensors it takes and gives. outputs: name by place in the network's output."""

    inputs: tuple[str, ...]
    outputs: Mapping[str, str]

    def feed(self, inputs: ForwardInputs) -> Outputs:
        tensors = [leaf for leaf in tree_leaves((inputs.args, inputs.kwargs)) if isinstance(leaf, Tensor)]
        return {name: tensor.cpu().numpy() for name, tensor in zip(self.inputs, tensors, strict=True)}

    def read(self, answer: Mapping[str, Array]) -> Outputs:
        return {leaf: np.atleast_1d(answer[name]) for leaf, name in self.outputs.items()}


@dataclass(frozen=True)
class ExportedModel:
    """One file, and how to run it. names: of an ONNX file."""

    runtime: str
    path: Path
    run: Runner
    names: OnnxNames | None = None


def run_eager(network: nn.Module) -> Runner:
    """`network` itself, in eval mode, without gradients."""

    def run(inputs: ForwardInputs) -> Outputs:
        network.eval()
        device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
        with torch.no_grad():
            return to_arrays(inputs.to(device).call(network))

    return run


def capture(network: nn.Module, example: ForwardInputs) -> torch.export.ExportedProgram:
    """`network` as torch.export takes it, for any number of samples.

    example: of at least two samples, because a size of one would be taken as a constant.
    Raises: NoExportError if torch.export can't take the network, or only for this many samples; a detector also if it
    then fails on an image with nothing to find.
    """
    if (found := example.foreign) is not None:
        raise NoExportError(
            ExportReason.NOT_EXPORTABLE,
            "an exported network takes tensors, and lists, tuples and dicts of them, but forward gets a "
            f"{found.__name__}. Name a part of the network that takes tensors as export.module.",
        )
    shapes = torch.export.ShapesCollection()
    for tensor in samples.batched(example):
        shapes[tensor] = {0: torch.export.Dim.DYNAMIC}
    network = network.eval()
    try:
        with torch.no_grad(), _without_output(), exportable_suppression():
            network = DictAnswers(network) if has_records(example.call(network)) else network
            dynamic = shapes.dynamic_shapes(network, example.args, example.kwargs)
            program = torch.export.export(network, example.args, example.kwargs, dynamic_shapes=dynamic)
            if samples.count(example) is None:
                # It may have fixed that something is found, as in RetinaNet and FCOS (torchvision 0.29).
                samples.blank_like(example).call(program.module())
            return program
    except Exception as error:  # torch.export has many, and few of them public
        raise NoExportError(ExportReason.NOT_EXPORTABLE, _not_taken(error, example)) from error


def _not_taken(error: Exception, example: ForwardInputs) -> str:
    if samples.count(example) is None:  # a list of images
        return f"the network must be exportable for one image, but torch.export says: {_said(error)}"
    return (
        f"the network must be exportable for any number of samples, but torch.export says: {_said(error)} "
        "Take the number of samples from x.shape[0] (len(x) makes it a constant) and don't branch on values."
    )


def export(network: nn.Module, example: ForwardInputs, formats: Sequence[str], folder: Path) -> list[ExportedModel]:
    """`network` as each of `formats`, with a dynamic batch dimension; each is loaded back from its file.

    A detector that torch.export can't take is written as ONNX alone, by tracing.
    Raises: NoExportError, see `capture`; also where there are no formats, since an MLflow model is one, too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        program = capture(network, example)
    except NoExportError as error:
        require_traced(error, example, formats)
        logger.warning("the export has an ONNX file only: %s", error)
        return [_write_traced_onnx(network, example, folder / ONNX_FILE)]
    exported = []
    if "pt2" in formats:
        exported.append(_write_pt2(program, folder / PT2_FILE))
    if "onnx" in formats:
        exported.append(_write_onnx(program, folder / ONNX_FILE, _names(network, example)))
    return exported


def require_traced(error: NoExportError, example: ForwardInputs, formats: Sequence[str]) -> None:
    """A network that torch.export can't take must be one that is written by tracing, which takes a list of images.

    Raises: `error`, with the format that would change it.
    """
    if samples.count(example) is not None or example.foreign is not None:
        raise error
    if "onnx" not in formats:
        raise NoExportError(error.reason, f"{error} Add onnx to export.formats: it is written by tracing.") from error


def _write_pt2(program: torch.export.ExportedProgram, path: Path) -> ExportedModel:
    write_with(path, lambda file: torch.export.save(program, file))
    # Our own file of a moment ago. A foreign pt2 is code: never load one whose digest is not in a certificate.
    module = torch.export.load(path).module()

    def run(inputs: ForwardInputs) -> Outputs:
        with torch.no_grad():
            return to_arrays(inputs.to(torch.device("cpu")).call(module))

    return ExportedModel("torch.export", path, run)


def _names(network: nn.Module, example: ForwardInputs) -> OnnxNames:
    """`input` and `output` where there is one, or else the names of parameters, keys and places."""
    named = zip_longest(inspect.signature(network.forward).parameters, example.args)
    positional = list(named)[: len(example.args)]
    given = {name or f"input_{at}": value for at, (name, value) in enumerate(positional)} | example.kwargs
    places = [keystr(path) for path, leaf in tree_flatten_with_path(given)[0] if isinstance(leaf, Tensor)]
    outputs = list(run_eager(network)(example))
    return OnnxNames(
        ("input",) if example.tensor is not None else tuple(map(_word, places)),
        {leaf: "output" if len(outputs) == 1 else f"output_{_word(leaf)}" for leaf in outputs},
    )


def _word(place: str) -> str:
    """A place in a pytree as a name: `['aux'][0]` is aux_0."""
    return re.sub(r"\W+", "_", place).strip("_")


def _write_onnx(program: torch.export.ExportedProgram, path: Path, names: OnnxNames) -> ExportedModel:
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
            input_names=list(names.inputs),
            output_names=list(names.outputs.values()),
        )
    _name_batch(path)
    return _onnx_model(path, names)


def _name_batch(path: Path) -> None:
    """Call the number of samples `batch`, which the exporter numbers like `s77`."""
    import onnx

    model = onnx.load(path)
    values = [*model.graph.input, *model.graph.value_info, *model.graph.output]
    shapes = [value.type.tensor_type.shape.dim for value in values]
    numbered = {dims[0].dim_param for dims in shapes[: len(model.graph.input)] if dims and dims[0].dim_param}
    for dim in (dim for dims in shapes for dim in dims if dim.dim_param and numbered):
        dim.dim_param = re.sub(rf"\b({'|'.join(map(re.escape, numbered))})\b", "batch", dim.dim_param)
    onnx.save(model, path)


def _write_traced_onnx(network: nn.Module, example: ForwardInputs, path: Path) -> ExportedModel:
    """By the exporter of TorchScript, which torchvision's detectors are written for."""
    names = _names(network, example)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # that it will be removed one day, and that traced sizes are fixed
        torch.onnx.export(
            network,
            example.args,
            str(path),
            dynamo=False,
            verbose=False,
            input_names=list(names.inputs),
            output_names=list(names.outputs.values()),
        )
    return _onnx_model(path, names)


def _onnx_model(path: Path, names: OnnxNames) -> ExportedModel:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(inputs: ForwardInputs) -> Outputs:
        wanted = list(names.outputs.values())
        return names.read(dict(zip(wanted, session.run(wanted, names.feed(inputs)), strict=True)))

    return ExportedModel("onnxruntime", path, run, names)


_CALL = re.compile(r'File "[^"]*?([^"/]+)", line (\d+), in \w+\n\s*(.+)')


def _said(error: Exception) -> str:
    """The first line of an error of torch.export, and the line of the network's code that it names."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    where = _CALL.search(str(error))
    return f"{first} ({where[1]}, line {where[2]}: {where[3].strip()})" if where else first


@contextmanager
def _without_output() -> Iterator[None]:
    """torch.export prints the whole graph of a network that it can't take, and more to its log."""
    loggers = [logging.getLogger(name) for name in ("torch.fx.experimental.symbolic_shapes", "torch.export")]
    levels = [one.level for one in loggers]
    try:
        for one in loggers:
            one.setLevel(logging.CRITICAL)
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)
