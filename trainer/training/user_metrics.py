"""Metrics that a user's LightningModule passes to self.log: means over an epoch, over all samples of all ranks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor
from torchmetrics import Metric

from syncnorm.trainer.contract.mlflow_rest import mlflow_name
from syncnorm.trainer.ranks.exchange import gather


class UserMetrics:
    """Replaces `log` and `log_dict` of a user's module while it trains.

    Lightning's own would average over batches, and over ranks only on request, and forgets the first half of an epoch
    when a job resumes. Here a value counts by the samples of its batch (`batch_size` if given), whatever on_step,
    on_epoch and sync_dist say. A torchmetrics.Metric is computed and reset at the end of the epoch.
    """

    def __init__(self) -> None:
        self._sums: defaultdict[str, list[Tensor | float]] = defaultdict(lambda: [0.0, 0.0])
        self._metrics: dict[str, Metric] = {}
        self.samples = 0

    def log(self, name: str, value: Any, *_: object, batch_size: int | None = None, **__: object) -> None:
        """As LightningModule.log."""
        name = mlflow_name(name)  # one that MLflow refuses would block all later metrics
        if isinstance(value, Metric):
            self._metrics[name] = value
            return
        weight = self.samples if batch_size is None else batch_size
        if weight > 0:
            total = self._sums[name]
            number = value.detach().double().mean() if isinstance(value, Tensor) else float(value)
            total[0] = total[0] + number * weight
            total[1] = float(total[1]) + weight

    def log_dict(self, dictionary: Mapping[str, Any], *_: object, **options: Any) -> None:
        for name, value in dictionary.items():
            self.log(name, value, batch_size=options.get("batch_size"))

    def finish(self) -> dict[str, float]:
        """Means of the epoch that ends, the same on every rank. Entered by every rank."""
        own = self.state()
        found = {name: float(metric.compute()) for name, metric in self._metrics.items()}  # adds up over the ranks
        for metric in self._metrics.values():
            metric.reset()
        self._sums.clear()
        self._metrics.clear()
        return found | {name: total / weight for name, (total, weight) in add_up(gather(own)).items()}

    def state(self) -> dict[str, list[float]]:
        """The counts of this rank in the epoch so far, for a checkpoint."""
        return {name: [float(total), float(weight)] for name, (total, weight) in self._sums.items()}

    def restore(self, state: dict[str, list[float]]) -> None:
        self._sums.clear()
        self._sums.update({name: list(pair) for name, pair in state.items()})

    def attach(self, own: LightningModule) -> None:
        vars(own).update(log=self.log, log_dict=self.log_dict)

    def detach(self, own: LightningModule) -> None:
        for name in ("log", "log_dict"):
            vars(own).pop(name, None)


def add_up(states: list[dict[str, list[float]]]) -> dict[str, list[float]]:
    """Sums and weights of several ranks, name by name."""
    names = dict.fromkeys(name for state in states for name in state)
    return {name: [sum(state[name][i] for state in states if name in state) for i in (0, 1)] for name in names}
