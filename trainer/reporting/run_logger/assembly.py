"""The logger and the sender of one attempt, from its launch and folders."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from syncnorm.trainer.contract.protocol import Launch
from syncnorm.trainer.reporting.fence_check import is_current
from syncnorm.trainer.reporting.metric_spool import Spool, rest_client
from syncnorm.trainer.reporting.run_logger.journal_sender import DELIVERED_FILE, JournalSender
from syncnorm.trainer.reporting.run_logger.lightning_logger import RunLogger
from syncnorm.trainer.storage.attempt_layout import AttemptFolders


def run_logger_of(launch: Launch, folders: AttemptFolders, spool: Spool, current_step: Callable[[], int]) -> RunLogger:
    """The logger of a rank. Only that of rank 0 writes."""
    return RunLogger(
        spool,
        folders.artifacts,
        run_id=launch.mlflow_run_id,
        experiment=launch.spec.project,
        current_step=current_step,
        earlier=[earlier.artifacts for earlier in folders.earlier(launch.attempt)],
        tracking_uri=launch.mlflow_uri,
    )


def journal_sender_of(launch: Launch, folders: AttemptFolders) -> JournalSender:
    """Of rank 0; not started yet. Fetches the artifacts of earlier attempts, which it delivers first."""
    earlier = folders.earlier(launch.attempt)
    for each in earlier:
        folders.mirror.fetch_all(each.artifacts)
        folders.mirror.fetch(each.root / DELIVERED_FILE)
    return JournalSender(
        rest_client(launch.mlflow_uri),
        launch.mlflow_run_id,
        [*(each.artifacts for each in earlier), folders.artifacts],
        partial(is_current, launch),
        folders.mirror.publish,
    )
