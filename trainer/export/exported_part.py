"""The part of a network that is exported: what it is given, which normalizations lie outside, and its form for
inference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from syncnorm import norm
from syncnorm.norm.torch_compat import BatchNormBase
from syncnorm.trainer.contract.failure import ExportReason
from syncnorm.trainer.contract.text import name_some
from syncnorm.trainer.errors import NoExportError
from syncnorm.trainer.export.forward_inputs import ForwardInputs, defines_forward


@dataclass(frozen=True)
class Part:
    """path: within the whole network; empty: all of it. inputs: those of the part, batch by batch."""

    path: str
    network: nn.Module
    inputs: list[ForwardInputs]


def find_part(network: nn.Module, batches: Sequence[ForwardInputs], path: str | None) -> Part:
    """The submodule at `path`, with what it is given while its entry (see `entry`) runs on `batches` in eval mode.

    Raises: NoExportError if there is no such submodule, if it does not run exactly once a batch, or if a normalization
    with batch statistics in it does not run: it was trained, and what is exported would not contain it.
    """
    part, entered, calls = _submodule(network, path), entry(network, path), list[ForwardInputs]()
    idle = {f"{path}.{name}" if path else name: layer for name, layer in _batch_normalizations(part)}
    with torch.no_grad(), _recorded(part, calls), _marked(idle):
        for batch in batches:
            batch.call(entered.eval())
    if path and len(calls) != len(batches):
        raise NoExportError(
            ExportReason.NOT_EXPORTABLE,
            f"export.module must name a submodule that runs once in a forward of {type(network).__name__}, but {path} "
            f"ran {len(calls)} times in {len(batches)}. Name one that contains it or that it contains.",
        )
    if idle:
        raise NoExportError(ExportReason.LAYERS_OUTSIDE, _outside(network, part, path, list(idle)))
    return Part(path or "", part, calls if path else list(batches))


def entry(network: nn.Module, path: str | None) -> nn.Module:
    """What samples go through to reach the part at `path`: all of `network`, or, where that has no forward, as a
    LightningModule may, the part itself.

    Raises: NoExportError if there is no such submodule.
    """
    return _submodule(network, path) if path and not defines_forward(network) else network


def inference_network(network: nn.Module, fold: bool) -> tuple[nn.Module, list[dict[str, Any]]]:
    """`network` in eval mode, or a folded copy of it with what became of each layer."""
    if not fold:
        return network.eval(), []
    folded, report = norm.fold(network)
    return folded, [asdict(entry) for entry in report]


def _submodule(network: nn.Module, path: str | None) -> nn.Module:
    try:
        return network.get_submodule(path or "")
    except AttributeError as error:
        children = ", ".join(name for name, _ in network.named_children()) or "none"
        raise NoExportError(
            ExportReason.NOT_EXPORTABLE,
            f"export.module must be the path of a submodule, but {type(network).__name__} has no {path}. It has "
            f"{children}.",
        ) from error


def _outside(network: nn.Module, part: nn.Module, path: str | None, idle: list[str]) -> str:
    where = f"export.module {path}" if path else f"{type(network).__name__}.forward"
    verb = "runs" if len(idle) == 1 else "run"
    whole = ", ".join(_running_parts(part, path, set(idle)))
    hint = f" ({whole})" if whole else ""
    return (
        f"{where} must run every normalization with batch statistics that was trained, but {name_some(idle)} never "
        f"{verb} in it. Set export.module to the submodule you want to use{hint}."
    )


def _running_parts(part: nn.Module, path: str | None, idle: set[str]) -> Iterator[str]:
    """The outermost submodules all of whose batch normalizations run, such as the generator of a GAN."""
    for name, child in part.named_children():
        at = f"{path}.{name}" if path else name
        layers = {f"{at}.{layer}" for layer, _ in _batch_normalizations(child) if layer}
        if layers and not layers & idle:
            yield at
        elif layers - idle:
            yield from _running_parts(child, at, idle)


def _batch_normalizations(part: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """With running statistics of batches; frozen ones are not among them."""
    return (
        (path, layer)
        for path, layer in part.named_modules()
        if isinstance(layer, BatchNormBase) and layer.running_mean is not None
    )


@contextmanager
def _recorded(part: nn.Module, calls: list[ForwardInputs]) -> Iterator[None]:
    def record(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append(ForwardInputs(args, kwargs))

    handle = part.register_forward_pre_hook(record, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _marked(idle: dict[str, nn.Module]) -> Iterator[None]:
    """Removes a layer from `idle` once it runs."""
    handles = [
        layer.register_forward_pre_hook(lambda *_, path=path: idle.pop(path, None) and None)
        for path, layer in list(idle.items())
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
