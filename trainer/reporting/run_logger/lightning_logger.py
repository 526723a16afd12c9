"""The logger that Lightning's Trainer gets: `self.logger` of a user's module."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.fabric.utilities.logger import _convert_params, _flatten_dict
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import Logger

from syncnorm.trainer.reporting.metric_spool import Spool
from syncnorm.trainer.reporting.run_logger.artifact_paths import safe_path
from syncnorm.trainer.reporting.run_logger.experiment import Experiment
from syncnorm.trainer.reporting.run_logger.media_writer import MediaWriter
from syncnorm.trainer.reporting.run_logger.run_writer import RunWriter
from syncnorm.trainer.reporting.run_logger.table_writer import TableWriter


class RunLogger(Logger):
    """Writes to the MLflow run of a job, from rank 0, without ever waiting for MLflow.

    artifacts: the attempt's folder of files for the run. run_id, experiment: of MLflow. current_step: the step of what
    is logged without one. earlier: artifacts of the job's earlier attempts. Other ranks may pass the same.

    >>> Trainer(logger=RunLogger(spool, folders.artifacts, run_id=run_id, experiment="demo"))  # doctest: +SKIP
    """

    def __init__(
        self,
        spool: Spool,
        artifacts: Path,
        *,
        run_id: str,
        experiment: str,
        current_step: Callable[[], int] = lambda: 0,
        earlier: Sequence[Path] = (),
        experiment_id: str | None = None,
        tracking_uri: str | None = None,
    ) -> None:
        super().__init__()
        self.run_id = run_id
        self.experiment_id = experiment_id
        self.tracking_uri = tracking_uri
        self._name = experiment
        self._scratch = artifacts.parent / "lightning"
        self._run = RunWriter(spool, artifacts, current_step, earlier)
        self._media = MediaWriter(self._run)
        self._tables = TableWriter(self._run)
        self._experiment = Experiment(self._run, self._media, self._tables, run_id, self._client, lambda: self.log_dir)

    @property
    @rank_zero_experiment
    def experiment(self) -> Experiment:
        """The verbs of MLflow's client, TensorBoard's writer and wandb's run; on other ranks they do nothing."""
        return self._experiment

    @property
    def name(self) -> str:
        """The experiment, as a name of a folder: callbacks make one of it."""
        return safe_path(self._name.replace("/", "_"))

    @property
    def version(self) -> str:
        """The run id."""
        return self.run_id

    @property
    def save_dir(self) -> str:
        """A folder of the attempt for files of callbacks. Log a file to have it in the run, too."""
        self._scratch.mkdir(parents=True, exist_ok=True)
        return str(self._scratch)

    @property
    def root_dir(self) -> str:
        """The folder of the experiment within `save_dir`."""
        return self._folder(self.name)

    @property
    def log_dir(self) -> str:
        """The folder of the run within `root_dir`."""
        return self._folder(f"{self.name}/{self.version}")

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Record metrics. Raises: ValueError for one that is not a number."""
        self._run.metrics(metrics, step)

    @rank_zero_only
    def log_hyperparams(
        self,
        params: dict[str, Any] | Namespace | None,
        metrics: Mapping[str, Any] | None = None,
        step: int | None = None,
    ) -> None:
        """Record params, flattened with `/`. metrics: as in TensorBoardLogger, at step 0 or `step`.

        A param of the name of one of the spec's, such as `seed`, becomes `hparams/seed`.
        """
        try:
            flat = _flatten_dict(_convert_params(params))
        except Exception as error:  # what a dataclass holds may refuse to be copied
            self._run.losses.add("log_hyperparams", f"{type(error).__name__}: {error}.")
            return
        self._run.params(flat)
        if metrics is not None:
            self._run.metrics(metrics, step or 0)

    @rank_zero_only
    def log_graph(self, model: Any, input_array: Any = None) -> None:
        """Lightning calls it for every module; a graph that was asked for by an input is left out, and said so."""
        if input_array is not None:
            self._run.losses.add("log_graph", "MLflow has no form for it. The exported model has the graph.")

    @rank_zero_only
    def log_image(
        self, key: str = "image", images: Any = (), step: int | None = None, caption: Any = None, **options: Any
    ) -> None:
        """Images of one key, as WandbLogger takes them: a list of tensors, arrays, PIL images or paths; or one."""
        several = images if isinstance(images, list | tuple) else [images]
        for index, image in enumerate(several):
            self._media.image(key, image, step, index=index)
        if caption is not None:
            texts = [str(one) for one in caption] if isinstance(caption, list | tuple) else [str(caption)]
            self._media.text("\n".join(texts), f"{key}/captions", step)
        for name in options:
            self._run.losses.add(f"log_image {name}", "Images of a run have captions, and nothing else drawn on them.")

    @rank_zero_only
    def log_text(
        self,
        key: str,
        columns: Sequence[str] | str | None = None,
        data: Sequence[Sequence[Any]] | None = None,
        dataframe: Any = None,
        step: int | None = None,
    ) -> None:
        """A table as in WandbLogger; or a text, alone or behind its key."""
        if isinstance(columns, str):
            self._media.text(columns, key, step)
        elif data is None and dataframe is None:
            self._media.text(key, step=step)
        else:
            self.log_table(key, columns, data, dataframe, step)

    @rank_zero_only
    def log_table(
        self,
        key: str,
        columns: Sequence[str] | None = None,
        data: Sequence[Sequence[Any]] | None = None,
        dataframe: Any = None,
        step: int | None = None,
    ) -> None:
        """Rows below their columns, or a pandas DataFrame. Rows of one key add up."""
        self._tables.add(data if dataframe is None else dataframe, f"{key}.json", columns=columns, step=step)

    @rank_zero_only
    def watch(self, *args: Any, **options: Any) -> None:
        """Of WandbLogger."""
        why = "Set diagnostics: [gradient_histograms] in the spec, or log add_histogram in a hook."
        self._run.losses.add("watch", why)

    @rank_zero_only
    def log_audio(self, *args: Any, **options: Any) -> None:
        """Of WandbLogger."""
        self._run.losses.add("log_audio", "The page of a run plays none. Log a file with experiment.log_artifact.")

    @rank_zero_only
    def log_video(self, *args: Any, **options: Any) -> None:
        """Of WandbLogger."""
        self._run.losses.add("log_video", "The page of a run plays none. Log a file with experiment.log_artifact.")

    def unwatch(self, *args: Any, **options: Any) -> None:
        """Of WandbLogger; nothing is watched."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Say what was lost. The status of the run is the service's."""
        self._run.say_losses()

    def _folder(self, name: str) -> str:
        folder = Path(self.save_dir) / name
        folder.mkdir(parents=True, exist_ok=True)
        return str(folder)

    def _client(self) -> Any:
        """MLflow's own client, for verbs that read."""
        from mlflow import MlflowClient

        return MlflowClient(self.tracking_uri)


# Modules ask `isinstance(self.logger, TensorBoardLogger)` before they log an image. This logger has the verbs of all.
MLFlowLogger.register(RunLogger)
TensorBoardLogger.register(RunLogger)
WandbLogger.register(RunLogger)
