"""The verbs of TensorBoard's SummaryWriter, with its signatures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from syncnorm.trainer.reporting.run_logger.media_writer import MediaWriter
from syncnorm.trainer.reporting.run_logger.run_writer import RunWriter

NOT_SHOWN = (
    "add_audio",
    "add_custom_scalars",
    "add_custom_scalars_marginchart",
    "add_custom_scalars_multilinechart",
    "add_embedding",
    "add_graph",
    "add_histogram_raw",
    "add_hparams_raw",
    "add_image_with_boxes",
    "add_mesh",
    "add_onnx_graph",
    "add_pr_curve",
    "add_pr_curve_raw",
    "add_tensor",
    "add_video",
)
"""Verbs for which MLflow has no form."""


class TensorBoardVerbs:
    """walltime and other options of TensorBoard's files have no meaning here."""

    def __init__(self, run: RunWriter, media: MediaWriter, folder: Callable[[], str]) -> None:
        self._run = run
        self._media = media
        self._folder = folder

    @property
    def log_dir(self) -> str:
        """A folder for files, as `self.logger.log_dir`."""
        return self._folder()

    def get_logdir(self) -> str:
        return self._folder()

    def add_scalar(
        self,
        tag: str,
        scalar_value: Any,
        global_step: Any = None,
        walltime: float | None = None,
        new_style: bool = False,
        double_precision: bool = False,
    ) -> None:
        self._run.metrics({tag: scalar_value}, global_step, _milliseconds(walltime))

    def add_scalars(
        self, main_tag: str, tag_scalar_dict: Mapping[str, Any], global_step: Any = None, walltime: float | None = None
    ) -> None:
        self._run.metrics({main_tag: tag_scalar_dict}, global_step, _milliseconds(walltime))

    def add_image(
        self,
        tag: str,
        img_tensor: Any,
        global_step: Any = None,
        walltime: float | None = None,
        dataformats: str = "CHW",
    ) -> None:
        if hasattr(img_tensor, "ndim") and img_tensor.ndim == 2 and dataformats == "CHW":
            dataformats = "HW"  # TensorBoard refuses it; there is but one way to read it
        self._media.image(tag, img_tensor, global_step, dataformats, stretch=False)

    def add_images(
        self,
        tag: str,
        img_tensor: Any,
        global_step: Any = None,
        walltime: float | None = None,
        dataformats: str = "NCHW",
    ) -> None:
        """All pictures as one grid."""
        self._media.image(tag, img_tensor, global_step, dataformats, stretch=False)

    def add_figure(
        self, tag: str, figure: Any, global_step: Any = None, close: bool = True, walltime: float | None = None
    ) -> None:
        """A figure, or a list of them. close: whether matplotlib may forget it."""
        step = self._run.step_of(global_step)
        for index, one in enumerate(figure if isinstance(figure, list | tuple) else [figure]):
            self._media.figure(f"{tag}/{index}" if isinstance(figure, list | tuple) else tag, one, step)
            if close and hasattr(one, "savefig"):
                import matplotlib.pyplot as plt

                plt.close(one)

    def add_histogram(
        self,
        tag: str,
        values: Any,
        global_step: Any = None,
        bins: Any = "tensorflow",
        walltime: float | None = None,
        max_bins: int | None = None,
    ) -> None:
        self._media.histogram(tag, values, global_step, bins, max_bins)

    def add_text(self, tag: str, text_string: Any, global_step: Any = None, walltime: float | None = None) -> None:
        self._media.text(text_string, tag, global_step)

    def add_hparams(
        self,
        hparam_dict: Mapping[str, Any],
        metric_dict: Mapping[str, Any],
        hparam_domain_discrete: Any = None,
        run_name: str | None = None,
        global_step: Any = None,
    ) -> None:
        self._run.params(hparam_dict)
        self._run.metrics(metric_dict, global_step)

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """The job closes what it opened."""


def _milliseconds(walltime: float | None) -> int | None:
    return None if walltime is None else int(walltime * 1000)
