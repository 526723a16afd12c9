"""`self.logger.experiment`: one object with MLflow's and TensorBoard's verbs, and wandb's `log`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from syncnorm.trainer.reporting.run_logger.media_writer import MediaWriter
from syncnorm.trainer.reporting.run_logger.mlflow_verbs import NOT_KEPT, OF_THE_SERVICE, MlflowVerbs
from syncnorm.trainer.reporting.run_logger.run_writer import RunWriter, numbers
from syncnorm.trainer.reporting.run_logger.table_writer import TableWriter
from syncnorm.trainer.reporting.run_logger.tensorboard_verbs import NOT_SHOWN, TensorBoardVerbs

_READING = ("get_", "list_", "search_", "download_")


class Experiment:
    """Verbs write to the job's folder and return at once, except those that read: MLflow's own client answers these.

    Raises: AttributeError for a verb of neither library.
    """

    def __init__(
        self, run: RunWriter, media: MediaWriter, tables: TableWriter, run_id: str, client: Callable[[], Any]
    ) -> None:
        self._run = run
        self._verbs = (MlflowVerbs(run, media, tables, run_id), TensorBoardVerbs(run, media))
        self._client = client

    def log(self, data: Mapping[str, Any], step: Any = None, commit: bool | None = None) -> None:
        """As wandb's run: numbers, nested ones as `a/b`, become metrics. Anything else is counted as left out."""
        for key, value in data.items():
            try:
                found = dict(numbers({key: value}))
            except ValueError:
                why = "Only numbers are logged this way. Log a figure, an image or a file by a verb of its own."
                self._run.losses.add(f"log of {key}", why)
            else:
                self._run.metrics(found, step)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        for verbs in self._verbs:
            if hasattr(verbs, name):
                return getattr(verbs, name)
        if name in (*NOT_SHOWN, *NOT_KEPT):
            return self._refusal(name, "The run of a job has no form for it. Log a figure, an image or a file instead.")
        if name in OF_THE_SERVICE:
            return self._refusal(name, "The service alone does this to the run of a job.")
        if name.startswith(_READING) and hasattr(client := self._client(), name):
            return getattr(client, name)
        raise AttributeError(
            "self.logger.experiment has the verbs of MlflowClient and of TensorBoard's SummaryWriter, and log; "
            f"{name!r} is none of them. Use for example log_metric, log_figure, add_image or add_text."
        )

    def __dir__(self) -> list[str]:
        return sorted({"log", *(name for verbs in self._verbs for name in dir(verbs) if not name.startswith("_"))})

    def _refusal(self, name: str, why: str) -> Callable[..., None]:
        def refuse(*args: Any, **options: Any) -> None:
            self._run.losses.add(name, why)

        return refuse
