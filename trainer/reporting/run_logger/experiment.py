"""`self.logger.experiment`: one object with the verbs of MLflow, TensorBoard and wandb."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from syncnorm.trainer.reporting.run_logger.media_writer import MediaWriter
from syncnorm.trainer.reporting.run_logger.mlflow_verbs import NOT_KEPT, OF_THE_SERVICE, MlflowVerbs
from syncnorm.trainer.reporting.run_logger.run_writer import RunWriter
from syncnorm.trainer.reporting.run_logger.table_writer import TableWriter
from syncnorm.trainer.reporting.run_logger.tensorboard_verbs import NOT_SHOWN, TensorBoardVerbs
from syncnorm.trainer.reporting.run_logger.wandb_verbs import NOT_TAKEN, WandbVerbs

_READING = ("get_", "list_", "search_", "download_")


class Experiment:
    """Verbs write to the job's folder and return at once, except those that read: MLflow's own client answers these.

    folder: makes the folder for files of the module. Raises: AttributeError for a verb of no library.
    """

    def __init__(
        self,
        run: RunWriter,
        media: MediaWriter,
        tables: TableWriter,
        run_id: str,
        client: Callable[[], Any],
        folder: Callable[[], str],
    ) -> None:
        self._run = run
        self._verbs = (
            MlflowVerbs(run, media, tables, run_id),
            TensorBoardVerbs(run, media, folder),
            WandbVerbs(run, media, tables, run_id, folder),
        )
        self._client = client

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        for verbs in self._verbs:
            if hasattr(verbs, name):
                return getattr(verbs, name)
        if name in (*NOT_SHOWN, *NOT_KEPT, *NOT_TAKEN):
            return self._refusal(name, "The run of a job has no form for it. Log a figure, an image or a file instead.")
        if name in OF_THE_SERVICE:
            return self._refusal(name, "The service alone does this to the run of a job.")
        if name.startswith(_READING) and hasattr(client := self._client(), name):
            return getattr(client, name)
        raise AttributeError(
            "self.logger.experiment has the verbs of MlflowClient, of TensorBoard's SummaryWriter and of wandb's run; "
            f"{name!r} is none of them. Use for example log_metric, log_figure, add_image or add_text."
        )

    def __dir__(self) -> list[str]:
        return sorted(name for verbs in self._verbs for name in dir(verbs) if not name.startswith("_"))

    def _refusal(self, name: str, why: str) -> Callable[..., None]:
        def refuse(*args: Any, **options: Any) -> None:
            self._run.losses.add(name, why)

        return refuse
