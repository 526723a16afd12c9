"""Audits a model before it is trained: what its normalization will suffer from, and how to correct it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from syncnorm.norm.auditing.findings import Finding, ObservedLayer, Training
from syncnorm.norm.auditing.layer_checks import check_layer, unknown_frozen_layer
from syncnorm.norm.auditing.model_checks import (
    check_depth_of_box_cox,
    check_dropout_of_selu,
    check_neighbours,
    check_output,
    check_unnormalized,
    check_weight_decay,
)
from syncnorm.norm.modules import call_with, first_input, preserved
from syncnorm.norm.reading.compiled_parts import compiled_parts
from syncnorm.norm.reading.dataflow import trace
from syncnorm.norm.reading.readers import Source, read_source
from syncnorm.norm.statistics.freezing import has_frozen_statistics
from syncnorm.norm.statistics.frozen_layers import is_named_frozen


def audit(
    model: nn.Module,
    example_input: Any,
    *,
    batch_size: int,
    workers: int,
    accumulate: int = 1,
    dataset_size: int | None = None,
    drop_last: bool = False,
    steps: int | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    group: int | None = None,
) -> list[Finding]:
    """What to know about the normalization of `model`, worst first. `model` is left as it is.

    example_input: what the model takes: a tensor, a tuple of arguments, or a mapping of keyword arguments. One sample
    is enough; it runs once, in eval mode, without gradients.
    batch_size: samples per worker and step. workers: those that train together. accumulate: micro-batches per step.
    dataset_size, drop_last, steps (of the whole training), optimizer: where given, they are looked at too.
    group: neighbouring workers that share statistics; None: all.
    Raises: ValueError for a batch size, number of workers or of micro-batches below 1.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(8))
    >>> for finding in norm.audit(model, torch.zeros(1, 3, 8, 8), batch_size=1, workers=4):
    ...     print(finding.severity, finding.path, finding.code)
    error 3 one_value_per_channel
    warning 1 statistics_of_one_worker
    warning 3 statistics_of_one_worker
    info 1 bias_before_norm
    """
    for name, value in (("batch_size", batch_size), ("workers", workers), ("accumulate", accumulate)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    training = Training(batch_size, workers, accumulate, dataset_size, drop_last, steps, group)
    found, sources = _read(model)
    for part in compiled_parts(model):
        found.append(Finding("compiled_normalization", part.path, part.message, part.fix, "warning"))
        if part.module is model:
            return found
    observed, output, failure = _run(model, example_input, sources)
    if failure is not None:
        fix = "See the other findings: a layer may not take the shape it gets."
        why = str(failure) if isinstance(failure, ValueError | RuntimeError) else repr(failure)
        found.append(Finding("forward_fails", "", f"The model does not take the example: {why}", fix, "error"))
        observed = [item for item in observed if item.shapes]
    flow = trace(model)
    for item in observed:
        found += [*check_layer(item, training), *check_neighbours(item, flow)]
    found += [*check_unnormalized(observed), *check_dropout_of_selu(model), *check_depth_of_box_cox(model)]
    found += check_output(output)
    if optimizer is not None:
        found += check_weight_decay(observed, optimizer)
    return sorted(found, key=lambda finding: ("error", "warning", "info").index(finding.severity))


def _read(model: nn.Module) -> tuple[list[Finding], dict[str, Source]]:
    """Layers that can't be read, and those that can, by path."""
    found, sources = list[Finding](), dict[str, Source]()
    for path, module in model.named_modules():
        try:
            source = read_source(module, path)
        except ValueError as error:
            fix = "Run one batch first, or describe the class with norm.register_source."
            found.append(Finding("unknown_layer", path, str(error), fix, "error"))
        else:
            if source is not None:
                is_frozen = has_frozen_statistics(module)  # then it takes no statistics from batches
                sources[path] = replace(source, kind="frozen_batch") if is_frozen else source
            elif is_named_frozen(module):
                found.append(unknown_frozen_layer(path, module))
    return found, sources


def _run(
    model: nn.Module, example_input: Any, sources: dict[str, Source]
) -> tuple[list[ObservedLayer], Any, Exception | None]:
    """One forward in eval mode: the layers of `sources` with the shapes they saw, what came out, and the error that
    stopped it, if any."""
    output, failure = None, None
    shapes: dict[str, list[torch.Size]] = {path: [] for path in sources}

    def note(path: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        shapes[path].append(first_input(args, kwargs).shape)

    layers = {path: model.get_submodule(path) for path in sources}
    handles = [layer.register_forward_pre_hook(partial(note, path), with_kwargs=True) for path, layer in layers.items()]
    try:
        with preserved(model), torch.no_grad():
            output = call_with(model.eval(), example_input)
    except Exception as error:  # the user's code, on the user's example
        failure = error
    finally:
        for handle in handles:
            handle.remove()
    observed = [ObservedLayer(path, layers[path], source, tuple(shapes[path])) for path, source in sources.items()]
    return observed, output, failure
