"""The verbs of MlflowClient, with or without a run id in front, as modules call them through MLFlowLogger."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from pathlib import Path, PurePosixPath
from typing import Any, Concatenate

from syncnorm.trainer.reporting.run_logger.media_writer import MediaWriter
from syncnorm.trainer.reporting.run_logger.run_writer import RunWriter
from syncnorm.trainer.reporting.run_logger.table_writer import TableWriter

OF_THE_SERVICE = ("delete_run", "restore_run", "set_terminated", "update_run")
"""Verbs by which the service keeps the run of a job."""
NOT_KEPT = (
    "delete_tag",
    "log_inputs",
    "log_model_artifact",
    "log_model_artifacts",
    "log_model_params",
    "log_outputs",
    "log_stream",
)
"""Verbs that could not outlast an outage of MLflow."""
_RUN_ID = re.compile(r"[0-9a-f]{32}")
_EARLIEST_MS = 10**11
"""A number above it is a time in milliseconds, below it a step."""


def _of_the_run(
    verb: Callable[Concatenate[MlflowVerbs, ...], None],
) -> Callable[Concatenate[MlflowVerbs, ...], None]:
    """Takes the run id of MlflowClient's signature off, if there is one."""

    @wraps(verb)
    def call(self: MlflowVerbs, *args: Any, run_id: Any = None, **options: Any) -> None:
        if args and isinstance(args[0], str) and _RUN_ID.fullmatch(args[0]):
            run_id, *args = args  # type: ignore[assignment]
        self._require_own(run_id)
        verb(self, *args, **options)

    return call


class MlflowVerbs:
    """synchronous and other options of a client have no meaning here: nothing waits for MLflow."""

    def __init__(self, run: RunWriter, media: MediaWriter, tables: TableWriter, run_id: str) -> None:
        self._run = run
        self._media = media
        self._tables = tables
        self._run_id = run_id

    @_of_the_run
    def log_metric(
        self,
        key: str,
        value: Any,
        *when: Any,
        timestamp: int | None = None,
        step: Any = None,
        synchronous: bool | None = None,
    ) -> None:
        """when: `timestamp, step` as in MlflowClient, or a step alone as in mlflow.log_metric."""
        if len(when) > 1:
            timestamp, step = when[:2]
        elif when and when[0] is not None:
            timestamp, step = (when[0], step) if when[0] > _EARLIEST_MS else (timestamp, when[0])
        self._run.metrics({key: value}, step, timestamp)

    @_of_the_run
    def log_metrics(
        self,
        metrics: Mapping[str, Any],
        step: Any = None,
        synchronous: bool | None = None,
        timestamp: int | None = None,
    ) -> None:
        self._run.metrics(metrics, step, timestamp)

    @_of_the_run
    def log_batch(
        self,
        metrics: Iterable[Any] = (),
        params: Iterable[Any] = (),
        tags: Iterable[Any] = (),
        synchronous: bool | None = None,
    ) -> None:
        """Takes mlflow's Metric, Param and RunTag."""
        for metric in metrics:
            self._run.metrics({metric.key: metric.value}, metric.step, metric.timestamp)
        self._run.params({param.key: param.value for param in params})
        self._run.tags({tag.key: tag.value for tag in tags})

    @_of_the_run
    def log_param(self, key: str, value: Any, synchronous: bool | None = None) -> None:
        self._run.params({key: value})

    @_of_the_run
    def log_params(self, params: Mapping[str, Any], synchronous: bool | None = None) -> None:
        self._run.params(params)

    @_of_the_run
    def set_tag(self, key: str, value: Any, synchronous: bool | None = None) -> None:
        self._run.tags({key: value})

    @_of_the_run
    def set_tags(self, tags: Mapping[str, Any], synchronous: bool | None = None) -> None:
        self._run.tags(tags)

    @_of_the_run
    def log_artifact(self, local_path: str | Path, artifact_path: str | None = None) -> None:
        self._media.copy(local_path, artifact_path)

    @_of_the_run
    def log_artifacts(self, local_dir: str | Path, artifact_path: str | None = None) -> None:
        self._media.copy(local_dir, artifact_path)

    @_of_the_run
    def log_text(self, text: str, artifact_file: str | None = None, step: Any = None) -> None:
        """Without a file name, a text of its step."""
        self._media.text(text, step=step, file=artifact_file)

    @_of_the_run
    def log_dict(self, dictionary: Mapping[str, Any], artifact_file: str | None = None) -> None:
        """Without a file name, one of its step."""
        self._media.dictionary(dictionary, artifact_file)

    @_of_the_run
    def log_figure(
        self,
        figure: Any = None,
        artifact_file: str | None = None,
        *,
        figure_name: str | None = None,
        step: Any = None,
        save_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """A name without a suffix is that of a series of figures, one a step. Figure and name may change places."""
        if isinstance(figure, str):
            figure, artifact_file = artifact_file, figure
        name = artifact_file or figure_name or "figure"
        if PurePosixPath(name).suffix:
            self._media.figure_file(name, figure, **(save_kwargs or {}))
        else:
            self._media.figure(name, figure, step, **(save_kwargs or {}))

    @_of_the_run
    def log_image(
        self,
        image: Any = None,
        artifact_file: str | None = None,
        key: str | None = None,
        step: Any = None,
        timestamp: int | None = None,
        synchronous: bool | None = None,
        name: str | None = None,
    ) -> None:
        """A key, or a name without a suffix, is that of a series of images, one a step. Image and name may change
        places."""
        if isinstance(image, str) and artifact_file is not None and not isinstance(artifact_file, str):
            image, artifact_file = artifact_file, image
        if artifact_file is not None and PurePosixPath(artifact_file).suffix:
            self._media.image_file(artifact_file, image)
        else:
            self._media.image(key or artifact_file or name or "image", image, step)

    @_of_the_run
    def log_table(
        self,
        data: Any = None,
        artifact_file: str | None = None,
        *,
        filename: str | None = None,
        tabular_data: Any = None,
        headers: Sequence[str] | None = None,
        step: Any = None,
    ) -> None:
        """A mapping of columns, a pandas DataFrame, or rows with their headers. Rows of one file add up."""
        rows = tabular_data if data is None else data
        self._tables.add(rows, artifact_file or filename or "table.json", columns=headers, step=step)

    def _require_own(self, run_id: Any) -> None:
        if run_id is not None and run_id != self._run_id:
            why = (
                f"Your job writes to its own run, {self._run_id}; this was meant for {run_id}. Use self.logger.run_id."
            )
            self._run.losses.add("another run", why)
