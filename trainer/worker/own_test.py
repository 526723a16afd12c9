"""The test of a user's module, once training is over."""

from __future__ import annotations

import logging

from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from syncnorm.trainer.contract.mlflow_rest import mlflow_name
from syncnorm.trainer.ranks.exchange import gather
from syncnorm.trainer.ranks.metric_lists import lists_of_any_length
from syncnorm.trainer.reporting.metric_spool import Spool
from syncnorm.trainer.training.logged_metrics import as_numbers, is_fork

logger = logging.getLogger(__name__)


def run_test(
    trainer: Trainer, module: LightningModule, datamodule: LightningDataModule | None, spool: Spool
) -> dict[str, float]:
    """Lightning's test with the weights that `module` has now. Entered by every rank.

    Every sample counts once, whatever the number of ranks. Returns what was logged, the same on every rank.
    """
    with lists_of_any_length():
        trainer.test(module, datamodule=datamodule, verbose=False)
    connector = trainer._logger_connector
    found = connector._callback_metrics
    numbers = {mlflow_name(name): value for name, value in as_numbers(found).items() if not is_fork(name, found)}
    metrics = gather(numbers)[0]
    if trainer.is_global_zero:
        by_logger = connector._logged_metrics  # the run has them already
        spool.append({name: value for name, value in metrics.items() if name not in by_logger}, trainer.global_step)
        logger.info("test: %s", ", ".join(f"{name} {value:.4g}" for name, value in metrics.items()) or "nothing logged")
    return metrics
