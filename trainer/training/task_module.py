"""A plain network with its task, as a LightningModule."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import Metric

from syncnorm.norm.accumulation.accumulated import run_together
from syncnorm.trainer.contract.spec import JobSpec
from syncnorm.trainer.data.loader import Batch
from syncnorm.trainer.training.optim import optimizer_of_spec
from syncnorm.trainer.training.tasks.task import Objective

METRICS = "metrics"


class TaskModule(LightningModule):
    """Trains `network` on `task`, as `spec` says."""

    def __init__(self, network: nn.Module, task: Objective, spec: JobSpec, total_steps: int) -> None:
        super().__init__()
        self.network = network
        self.task = task
        self.spec = spec
        self._total_steps = total_steps
        # Not registered as submodules: their counts differ from rank to rank and are not part of the model.
        self._scores = {stage: _persistent(task.scores(stage)) for stage in ("train", "val")}

    @property
    def training_scores(self) -> Any:
        """What counts the batches of training: the scores of its task."""
        return self._scores["train"]

    def forward(self, x: Tensor) -> Any:
        return self.network(x)

    def on_fit_start(self) -> None:
        dtype = next((each.dtype for each in self.network.parameters()), torch.float32)
        self.task = self.task.to(self.device, dtype)
        for scores in self._scores.values():
            scores.to(self.device)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:  # noqa: ARG002 - Lightning's signature
        if not batch.micro_batch:
            return self.task.step(self.network, batch, self._scores["train"])
        # Each part has its share of the weight, so their sum is the loss of this worker's whole batch.
        steps = [partial(self.task.step, self.network, part, self._scores["train"]) for part in batch.micro_batches()]
        return torch.stack(run_together(self.network, steps)).sum()

    def uncounted_loss(self, batch: Batch) -> Tensor:
        """The loss that training_step returns for `batch`, without counting the batch in the metrics."""
        return self.task.step(self.network, batch, None)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002 - Lightning's signature
        self.task.count(self.network, batch, self._scores["val"])

    def on_train_epoch_end(self) -> None:
        self._finish("train")

    def on_validation_epoch_end(self) -> None:
        self._finish("val")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return optimizer_of_spec(self.network, self.spec, self._total_steps)

    def counts(self) -> dict[str, Tensor]:
        """What this rank has counted in the epoch so far, for a checkpoint."""
        return {name: tensor.cpu() for name, tensor in self._scores["train"].state_dict().items()}

    def restore_counts(self, counts: Mapping[str, Tensor]) -> None:
        self._scores["train"].load_state_dict(counts)

    def adopt_counts(self, of_ranks: list[Mapping[str, Tensor]]) -> None:
        """Take over the counts of ranks of another world size: all on rank 0, so that they count once."""
        if self.trainer.global_rank == 0:
            self.restore_counts({name: torch.stack([each[name] for each in of_ranks]).sum(0) for name in of_ranks[0]})

    def _finish(self, stage: str) -> None:
        """Log the scores of all ranks, which are the same on each of them."""
        for name, value in self._scores[stage].compute().items():
            self.log(name, value, logger=False)  # the spool gets it with the progress of the epoch
        self._scores[stage].reset()


def _persistent(scores: nn.Module) -> Any:
    for metric in scores.modules():
        if isinstance(metric, Metric):
            metric.persistent(True)
    return scores


def network_of(module: LightningModule) -> nn.Module:
    """What is trained: the plain network of a built-in task, or the user's LightningModule itself."""
    return module.network if isinstance(module, TaskModule) else module
