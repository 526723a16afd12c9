"""Loads weights into a network once its normalization is converted: all of them, or none."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import safetensors
from torch import Tensor, nn

from syncnorm import norm
from syncnorm.trainer.contract.catalog.names import MODELS
from syncnorm.trainer.contract.initial_weights import LoadedWeights, WeightOrigin
from syncnorm.trainer.contract.norm_choice import choose_norm
from syncnorm.trainer.contract.plan import Inspection
from syncnorm.trainer.contract.spec import JobSpec
from syncnorm.trainer.contract.spec_findings import Finding
from syncnorm.trainer.contract.text import counted
from syncnorm.trainer.weights.kind_losses import losses
from syncnorm.trainer.weights.network import Network, Slot, Target
from syncnorm.trainer.weights.tensor_matching import Matching, match
from syncnorm.trainer.weights.tensor_names import unused

logger = logging.getLogger(__name__)


class InitialWeights:
    """The weights of model.init_from in a safetensors file on this host.

    origin: where they came from. report: what became of every tensor. findings: what a changed kind loses, and what
    spoke against loading, as errors of a plan: then nothing was loaded.
    """

    def __init__(self, file: Path, origin: WeightOrigin, spec: JobSpec) -> None:
        assert spec.model.init_from is not None
        self._file = file
        self.origin = origin
        self._spec = spec
        self._how = spec.model.init_from
        self.report: LoadedWeights | None = None
        self.findings: list[Finding] = []

    def load(self, network: nn.Module) -> None:
        """Load all tensors that have a place, unless something speaks against it. Draws no random numbers."""
        if self._spec.train.precision == "64-true":
            network.double()  # as Lightning does next; in single precision, digits of the weights would be lost
        places = norm.tensor_places(network)
        with safetensors.safe_open(self._file, "pt") as file:
            target = _network(places.by_name, places.layers, self._spec)
            found = match({name: _slot(file, name) for name in file.keys()}, target, self._how)  # noqa: SIM118
            unknown = unused(file.keys(), target, self._how)
            self.findings = [
                *_errors(found, self.origin),
                *_no_effect(unknown),
                *losses(found, target, is_cumulative=_averages_all(network)),
                *_other_statistics(found, self.origin),
            ]
            if not found.faults:
                for name, source in found.pairs.items():
                    places.by_name[name].put(file.get_tensor(source))
                for name in found.zeros:
                    places.by_name[name].tensor.detach().zero_()
        self.report = LoadedWeights(
            origin=self.origin,
            loaded=[] if found.faults else found.loaded,
            dropped=found.dropped,
            left=found.left,
        )
        if not found.faults:
            logger.info("initial weights: %s", self.report.summary())


def _averages_all(network: nn.Module) -> bool:
    """Whether running statistics of a layer are the average over all batches."""
    with_statistics = (layer for layer in network.modules() if isinstance(getattr(layer, "running_mean", None), Tensor))
    return any(getattr(layer, "momentum", 0.0) is None for layer in with_statistics)


def no_weights(_network: nn.Module) -> None:
    """The `load` of a job that starts from the weights that its model is built with."""


def with_weights(inspection: Inspection, weights: InitialWeights) -> Inspection:
    """With what became of the weights."""
    findings = [*weights.findings, *inspection.findings]
    return inspection.model_copy(update={"init_from": weights.report, "findings": findings})


def _errors(found: Matching, origin: WeightOrigin) -> Iterator[Finding]:
    for message, fix in found.faults:
        text = f"The weights of {origin.source} can't be loaded, and nothing was: {message}"
        yield Finding(code="weights_do_not_fit", path="model.init_from", message=text, fix=fix, severity="error")


def _no_effect(unused: Iterable[tuple[str, str]]) -> Iterator[Finding]:
    for field, text in unused:
        yield Finding(
            code="weights_name_unused",
            path=field,
            message=f"{text!r} fits no name, so it has no effect.",
            fix="Correct it, or leave it out.",
            severity="warning",
        )


def _other_statistics(found: Matching, origin: WeightOrigin) -> Iterator[Finding]:
    layers = sum(name.endswith("running_mean") for name in found.pairs)
    if origin.is_average_with_other_statistics and layers:
        yield Finding(
            code="weights_with_other_statistics",
            path="model.init_from.checkpoint",
            message=f"{origin.source} is from the middle of an epoch. Its averaged weights come with running "
            f"statistics of other weights in {counted(layers, 'layer')}, so the network answers worse until training "
            "has replaced them.",
            fix="Name a checkpoint from the end of an epoch, or use an export of the job (model.init_from.model).",
            severity="warning",
        )


def _network(places: dict[str, norm.TensorPlace], layers: dict[str, str], spec: JobSpec) -> Network:
    targets = {}
    for name, place in places.items():
        tensor = place.tensor
        targets[name] = Target(tuple(tensor.shape), _kind(tensor), place.fills, place.of_kind)
    return Network(targets, layers, choose_norm(spec).kind, has_moving_biases=spec.model.name in MODELS)


def _kind(tensor: Tensor) -> str:
    return "complex" if tensor.is_complex() else "float" if tensor.is_floating_point() else "whole"


def _slot(file: Any, name: str) -> Slot:
    part = file.get_slice(name)
    dtype = part.get_dtype()
    kind = "complex" if dtype.startswith("C") else "float" if dtype.startswith(("F", "BF")) else "whole"
    return Slot(tuple(part.get_shape()), kind)
