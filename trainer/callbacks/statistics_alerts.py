"""Alerts about the statistics of a layer, decided on the snapshots that are taken for MLflow anyway."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Literal

from syncnorm.norm import NormSnapshot
from syncnorm.trainer.reporting.reporter import Reporter

Cause = Literal["drift", "collapsed", "non_finite"]

DRIFT = 1.0
"""Standard deviations. The mean of n values lies sqrt(2 / (pi n)) off by chance: 0.8 for a single one."""
RECOVERED = 0.5
"""A drift ends below this share of DRIFT, so that one around the threshold alerts once."""
WARM_UP = 30
"""Batches. By then the start values (0 and 1) have 0.9^30 = 4 % of the running statistics, at a momentum of 0.1."""
_MOST_LAYERS = 50
_TEXTS: dict[Cause, str] = {
    "drift": f"the last batch is more than {DRIFT:g} standard deviations from the running mean: the layer "
    "behaves differently in eval mode than in training. Raise norm.momentum, or look at what changed in the data",
    "collapsed": "channels have a running variance below the layer's eps: they are constant, and the layer no longer "
    "normalizes them. Lower optimizer.lr, or look for dead units before the layer",
    "non_finite": "a batch would have made running statistics NaN or infinite, and was not added to them. Look for "
    "such values in the data, or lower optimizer.lr",
}


class StatisticsAlarm:
    """Tells of each layer and cause once, until it has recovered. On rank 0.

    drift, with m the last observed batch's mean (of rank 0) and C channels, from WARM_UP batches on:
        mean over c of |m_c - running_mean_c| / sqrt(running_var_c + eps) > DRIFT; over again below RECOVERED * DRIFT
    collapsed: running_var_c < eps for some channel c
    non_finite: any of the above is NaN or infinite, or StatisticsShield had to undo a batch since the last look

    Frozen layers are left out.

    An event `statistics_alert` has `cause`, `step`, and `layers` with the drift, or the number of channels, of each;
    `statistics_recovered` ends it. Costs nothing between looks, which come with `statistics.every`.
    """

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._raised: set[tuple[str, Cause]] = set()
        self._undone: set[str] = set()

    def check(self, layers: Mapping[str, NormSnapshot], eps: Callable[[str], float], step: int) -> None:
        """eps: of a layer by its path."""
        found: dict[Cause, dict[str, float]] = {"drift": {}, "collapsed": {}, "non_finite": {}}
        for path, layer in layers.items():
            if layer.frozen:  # its statistics were given, and no step changes them
                continue
            for cause, value in _causes(layer, eps(path), step, is_raised=(path, "drift") in self._raised):
                found[cause][path] = value
        found["non_finite"] |= dict.fromkeys(self._undone, 1.0)
        self._undone.clear()
        for cause, values in found.items():
            self._raise(cause, values, step)
            self._recover(cause, values, step)

    def undone(self, paths: Collection[str], step: int) -> None:
        """A batch was not added to the statistics of these layers."""
        self._undone |= set(paths)
        self._raise("non_finite", dict.fromkeys(paths, 1.0), step)

    def state_dict(self) -> dict[str, Any]:
        return {"raised": sorted(self._raised)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._raised = {(path, cause) for path, cause in state["raised"]}

    def _raise(self, cause: Cause, values: Mapping[str, float], step: int) -> None:
        new = {path: round(value, 4) for path, value in values.items() if (path, cause) not in self._raised}
        if not new:
            return
        self._raised |= {(path, cause) for path in new}
        shown = dict(list(new.items())[:_MOST_LAYERS])
        message = f"{_names(list(new))}: {_TEXTS[cause]}."
        self._reporter.event("statistics_alert", message, cause=cause, step=step, layers=shown)

    def _recover(self, cause: Cause, values: Mapping[str, float], step: int) -> None:
        recovered = sorted(path for path, kind in self._raised if kind == cause and path not in values)
        if recovered:
            self._raised -= {(path, cause) for path in recovered}
            message = f"{_names(recovered)}: no longer {cause.replace('_', '-')}."
            self._reporter.event(
                "statistics_recovered", message, cause=cause, step=step, layers=recovered[:_MOST_LAYERS]
            )


def _causes(layer: NormSnapshot, eps: float, step: int, *, is_raised: bool) -> Iterator[tuple[Cause, float]]:
    numbers = (layer.running_mean_abs, layer.running_var_mean, layer.drift or 0.0)
    if not all(math.isfinite(number) for number in numbers):
        yield "non_finite", 1.0
        return
    batches = step if layer.num_batches_tracked is None else layer.num_batches_tracked
    limit = DRIFT * RECOVERED if is_raised else DRIFT
    if layer.drift is not None and batches >= WARM_UP and layer.drift > limit:
        yield "drift", layer.drift
    if channels := int((layer.running_var < eps).sum()):
        yield "collapsed", float(channels)


def _names(paths: list[str]) -> str:
    more = f" and {len(paths) - 3} more layers" if len(paths) > 3 else ""
    return ", ".join(path or "the network" for path in paths[:3]) + more
