"""Checks of each layer by itself: its input's shape, its arguments, its statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from syncnorm.norm.auditing.findings import Finding, ObservedLayer, Severity, Training
from syncnorm.norm.kind import smallest_share
from syncnorm.norm.layers.batch_renorm import BatchRenorm, SyncBatchRenorm
from syncnorm.norm.reading.readers import num_groups

# Below it the error of a variance estimate, sqrt(2 / (n - 1)), is above a quarter.
FEW_VALUES = 32
# A channel whose variance is below it is constant for float32.
DEAD_VARIANCE = 1e-10


def check_layer(observed: ObservedLayer, training: Training) -> Iterator[Finding]:
    """All findings about one layer."""
    for check in _CHECKS:
        yield from check(observed, training)


def unknown_frozen_layer(path: str, layer: nn.Module) -> Finding:
    """About a layer that has the name of frozen batch normalization only."""
    name = type(layer).__name__
    message = f"{name} is called like frozen batch normalization, but has other tensors or computes something else."
    fix = "convert and fold leave it as it is. If it normalizes channels, describe it with norm.register_source."
    return Finding("unknown_frozen_layer", path, message, fix, "info")


def _finding(
    observed: ObservedLayer, code: str, severity: Severity, message: str, fix: str, **numbers: float
) -> Finding:
    return Finding(code, observed.path, message, fix, severity, numbers)


def _batch_size(observed: ObservedLayer, training: Training) -> Iterator[Finding]:
    if not observed.kind.batch_statistics or not observed.shapes:
        return
    values, name = observed.values(training), observed.source.kind
    numbers = {"values": values, "samples": training.batch_size, "positions": observed.positions}
    if values == 1:
        message = f"{name} has 1 value per channel; its variance is undefined and training raises an error."
        fix = "Use a larger batch, sync_batch, or a kind without batch statistics such as group."
        yield _finding(observed, "one_value_per_channel", "error", message, fix, **numbers)
    elif values < FEW_VALUES:
        message = f"{name} takes its statistics from {values} values per channel; below {FEW_VALUES} they are noise."
        fix = "Use a larger batch, sync_batch over more workers, batch_renorm or group."
        yield _finding(observed, "few_values_per_statistic", "warning", message, fix, **numbers)
    if values > 1 and observed.positions == 1 and len(observed.shapes[0]) > 2:
        message = f"{name} sits on a map of one position, so its statistics come from {values} samples only."
        fix = "Move it in front of the pooling, or use layer here."
        yield _finding(observed, "batch_norm_on_one_position", "warning", message, fix, **numbers)


def _workers(observed: ObservedLayer, training: Training) -> Iterator[Finding]:
    name, workers = observed.source.kind, training.workers
    if observed.kind.synchronizes and workers == 1:
        message = f"{name} has no other worker to synchronize with."
        yield _finding(observed, "sync_on_one_worker", "info", message, f"Use {name.removeprefix('sync_')}.", workers=1)
    if observed.kind.batch_statistics and not observed.kind.synchronizes and workers > 1 and training.batch_size < 8:
        own = "only sample" if training.batch_size == 1 else f"own {training.batch_size} samples"
        message = f"Each of {workers} workers normalizes by its {own}."
        fix = f"Use sync_batch: {training.batch_size * workers} samples."
        numbers = {"samples": training.batch_size, "workers": workers}
        yield _finding(observed, "statistics_of_one_worker", "warning", message, fix, **numbers)
    if type(observed.layer) is nn.SyncBatchNorm:
        message = "torch.nn.SyncBatchNorm does not run on the CPU and has no second derivative."
        fix = 'Convert with norm.convert(model, "sync_batch"); checkpoints keep their keys.'
        yield _finding(observed, "torch_sync_batch_norm", "warning", message, fix)


def _accumulation(observed: ObservedLayer, training: Training) -> Iterator[Finding]:
    if observed.kind.batch_statistics and training.accumulate > 1:
        message = (
            f"Statistics are per micro-batch: {training.accumulate} micro-batches of {training.batch_size} do not "
            f"equal one batch of {training.accumulate * training.batch_size}."
        )
        fix = "Use norm.accumulated, more workers with sync_batch, or a kind without batch statistics."
        yield _finding(
            observed, "accumulation_splits_statistics", "warning", message, fix, accumulate=training.accumulate
        )


def _last_batch(observed: ObservedLayer, training: Training) -> Iterator[Finding]:
    if not observed.kind.batch_statistics or training.dataset_size is None or training.drop_last:
        return
    full = training.batch_size * training.workers
    rest = training.dataset_size % full
    if rest == 0 or not observed.shapes:
        return
    values = smallest_share(rest, training.workers, observed.workers(training)) * observed.positions
    if values * 4 > observed.values(training):
        return
    severity: Severity = "error" if values == 1 else "warning"
    message = f"The last batch of an epoch has {rest} of {full} samples: statistics from {values} values per channel."
    fix = "Set drop_last, or choose a batch size that divides the data."
    yield _finding(observed, "uneven_last_batch", severity, message, fix, rest=rest, values=values)


def _ghosts(observed: ObservedLayer, training: Training) -> Iterator[Finding]:
    if observed.source.kind != "ghost_batch":
        return
    size = int(vars(observed.layer)["ghost_size"])
    if training.batch_size % size:
        rest = training.batch_size % size
        message = f"ghost_size {size} does not divide the batch of {training.batch_size}: the last ghost has {rest}."
        yield _finding(
            observed, "ghost_size_does_not_divide", "info", message, "Use a divisor.", ghost_size=size, rest=rest
        )


def _groups(observed: ObservedLayer, training: Training) -> Iterator[Finding]:  # noqa: ARG001
    if observed.source.kind not in ("group", "layer", "instance", "evo_s0"):
        return
    channels = observed.source.num_features
    groups = num_groups(observed.layer) or channels
    if channels % groups:
        message = f"num_groups must divide the channels: {groups} does not divide {channels}."
        fix = f'Use a divisor of {channels}, or num_groups="auto".'
        yield _finding(observed, "groups_do_not_divide", "error", message, fix, num_groups=groups, channels=channels)
        return
    values = channels // groups * observed.positions
    if observed.shapes and values == 1:
        message = "Each group holds one value, so the output is the bias whatever the input."
        fix = "Use fewer groups, or layer."
        yield _finding(observed, "group_of_one_value", "error", message, fix, num_groups=groups, channels=channels)


def _calls(observed: ObservedLayer, training: Training) -> Iterator[Finding]:  # noqa: ARG001
    if not observed.shapes:
        message = "The layer was not reached by the example input."
        fix = "Remove it, or make sure every worker reaches it in every step: workers that wait for it would hang."
        severity: Severity = "warning" if observed.kind.synchronizes else "info"
        yield _finding(observed, "layer_not_reached", severity, message, fix)
    elif len(observed.shapes) > 1 and observed.kind.running_statistics and observed.kind.batch_statistics:
        message = f"The layer runs {len(observed.shapes)} times a forward: its running statistics mix different inputs."
        fix = "Give each place a layer of its own; the weights before may stay shared."
        yield _finding(observed, "layer_called_several_times", "warning", message, fix, calls=len(observed.shapes))


def _arguments(observed: ObservedLayer, training: Training) -> Iterator[Finding]:
    layer: Any = observed.layer
    if observed.kind.batch_statistics and observed.kind.running_statistics:
        if not observed.source.track_running_stats:
            message = "No running statistics: in eval the output of a sample depends on its batch."
            fix = "Set track_running_stats=True, or use group."
            yield _finding(observed, "no_running_statistics", "warning", message, fix)
        if layer.momentum in (0, 1):
            what = "never move" if layer.momentum == 0 else "are those of the last batch"
            message = f"momentum is the weight of the new batch: with {layer.momentum:g} running statistics {what}."
            yield _finding(observed, "extreme_momentum", "warning", message, "Use 0.1.", momentum=layer.momentum)
    dtype = next((parameter.dtype for parameter in layer.parameters()), torch.float32)
    smallest = torch.finfo(dtype).smallest_normal if dtype == torch.float16 else 0.0
    if observed.source.eps <= smallest:
        message = f"eps {observed.source.eps:g} is 0 in {dtype}: a constant channel divides by zero."
        yield _finding(observed, "eps_too_small", "warning", message, "Use 1e-5.", eps=observed.source.eps)
    if isinstance(layer, BatchRenorm | SyncBatchRenorm) and training.steps is not None:
        start = layer.schedule.warmup_steps
        if start >= training.steps:
            message = f"Renormalization starts at step {start}, but training ends at {training.steps}."
            fix = (
                f"Set warmup_steps, for example {training.steps // 16}, and r_max_steps, d_max_steps within the "
                "training."
            )
            yield _finding(observed, "renorm_never_starts", "warning", message, fix, start=start, steps=training.steps)


def _statistics(observed: ObservedLayer, training: Training) -> Iterator[Finding]:  # noqa: ARG001
    mean, var = (getattr(observed.layer, name, None) for name in ("running_mean", "running_var"))
    if not isinstance(mean, Tensor) or not isinstance(var, Tensor):
        return
    bad = int((~(mean.isfinite() & var.isfinite())).sum())
    if bad:
        message = f"The running statistics of {bad} of {len(mean)} channels are not finite."
        fix = "Recompute them with norm.recompute_population_statistics, and look for the batch that did it."
        yield _finding(observed, "non_finite_statistics", "error", message, fix, channels=bad)
    dead = int((var < DEAD_VARIANCE).sum())
    if dead:
        message = f"{dead} of {len(var)} channels are constant: running_var below {DEAD_VARIANCE:g}."
        fix = "Look at the layer before: dead activations or zero weights."
        yield _finding(observed, "dead_channels", "warning", message, fix, channels=dead)
    if observed.source.kind == "frozen_batch" and _changes_nothing(observed, mean, var):
        message = "The layer is frozen with the statistics it was built with: it normalizes nothing."
        fix = "Load trained statistics, or freeze after training."
        yield _finding(observed, "frozen_without_statistics", "warning", message, fix)


def _changes_nothing(observed: ObservedLayer, mean: Tensor, var: Tensor) -> bool:
    """Whether it is as it was built. Scale and shift count, too: Detectron2 loads layers that were merged into them."""
    weight, bias = (getattr(observed.layer, name, None) for name in ("weight", "bias"))
    is_scaled = isinstance(weight, Tensor) and bool((weight != weight[0]).any())
    is_shifted = isinstance(bias, Tensor) and bool(bias.any())
    is_fresh = not mean.any() and bool(((var - 1).abs() <= 1.1 * observed.source.eps).all())
    return is_fresh and not is_scaled and not is_shifted


_CHECKS: tuple[Callable[[ObservedLayer, Training], Iterator[Finding]], ...] = (
    _batch_size,
    _workers,
    _accumulation,
    _last_batch,
    _ghosts,
    _groups,
    _calls,
    _arguments,
    _statistics,
)
