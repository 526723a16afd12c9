"""Pictures, texts and tables on their way to the run. What can't be drawn or written is a loss, never an error."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from syncnorm.trainer.contract.text import storable_json
from syncnorm.trainer.reporting.run_logger.artifact_paths import artifact_path, image_path, step_path
from syncnorm.trainer.reporting.run_logger.pictures.histogram import Histogram
from syncnorm.trainer.reporting.run_logger.pictures.image_encoding import (
    encode,
    figure_bytes,
    preview,
    to_array,
    to_image,
)
from syncnorm.trainer.reporting.run_logger.run_writer import RunWriter

_SHOWN_AS_IMAGES = {"mlflow.loggedImages": "True"}
"""Makes MLflow's page of the run show its images, with a slider of steps (mlflow 3.17)."""


class MediaWriter:
    """Everything that becomes a file. file: the path a user gave; without one, the path follows from tag and step."""

    def __init__(self, run: RunWriter) -> None:
        self._run = run

    def image(
        self, tag: str, image: Any, step: Any = None, layout: str | None = None, *, index: int = 0, stretch: bool = True
    ) -> None:
        """One picture among those of `tag`, which MLflow shows by step."""
        number = self._run.step_of(step)
        with_suffix = image_path(tag, number, index)

        def write() -> None:
            drawn = to_image(image, layout, stretch=stretch)
            self._run.write(f"{with_suffix}.png", encode(drawn))
            self._run.write(f"{with_suffix}+compressed.webp", preview(drawn))
            self._run.tags(_SHOWN_AS_IMAGES)

        self._try(f"image {tag}", write)

    def image_file(self, file: str, image: Any) -> None:
        """A picture as the file that its user named."""
        path = artifact_path(file)
        self._try(f"image {file}", lambda: self._run.write(path, encode(to_image(image), PurePosixPath(path).suffix)))

    def figure(self, tag: str, figure: Any, step: Any = None, **options: Any) -> None:
        """A figure among the images of `tag`; one of plotly as a page of its own."""
        number = self._run.step_of(step)

        def write() -> None:
            content = figure_bytes(figure, ".png", **options)
            if hasattr(figure, "write_html"):
                self._run.write(step_path("figures", tag, number, ".html"), content)
            else:
                self.image(tag, Image.open(io.BytesIO(content)), number)

        self._try(f"figure {tag}", write)

    def figure_file(self, file: str, figure: Any, **options: Any) -> None:
        suffix = PurePosixPath(file).suffix or (".html" if hasattr(figure, "write_html") else ".png")
        path = artifact_path(file if PurePosixPath(file).suffix else f"{file}{suffix}")
        if hasattr(figure, "write_html") and suffix != ".html":
            self._run.losses.add(f"figure {file}", "A figure of plotly is kept as a page; its name gets the end .html.")
            path = f"{path}.html"
        self._try(f"figure {file}", lambda: self._run.write(path, figure_bytes(figure, suffix, **options)))

    def histogram(
        self, tag: str, values: Any, step: Any = None, bins: Any = "tensorflow", most: int | None = None
    ) -> None:
        """A histogram as a picture, and its numbers as `logged/histograms/{tag}/step-….json`."""
        self._histogram(tag, lambda: Histogram.of(to_array(values), bins, most), step)

    def counts(self, tag: str, counts: Sequence[float], edges: Sequence[float], step: Any = None) -> None:
        """The same for values that were counted before."""
        self._histogram(tag, lambda: Histogram.of_counts(counts, edges), step)

    def text(self, text: str, tag: str = "text", step: Any = None, file: str | None = None) -> None:
        """A text as `file`; without one, by tag and step."""
        path = artifact_path(file) if file is not None else step_path("text", tag, self._run.step_of(step), ".txt")
        self._run.write(path, str(text).encode(errors="replace"))

    def dictionary(self, content: Mapping[str, Any], file: str | None = None) -> None:
        """As YAML or JSON, by the end of the name; without one, by step."""
        path = artifact_path(file) if file is not None else step_path("dict", "dict", self._run.step_of(None), ".json")
        plain = storable_json(content)
        if PurePosixPath(path).suffix in (".yaml", ".yml"):
            import yaml

            text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
        else:
            text = json.dumps(plain, indent=2, ensure_ascii=False)
        self._run.write(path, text.encode(errors="replace"))

    def copy(self, source: str | Path, folder: str | None = None) -> None:
        """A file of the user's, or all files of a folder, below the folder `folder` of the run."""
        try:
            path = Path(source)
        except TypeError:
            self._run.losses.add(f"file {type(source).__name__}", f"It must be given by its path; got {source!r:.200}.")
            return
        if not path.exists():
            self._run.losses.add(f"file {source}", "It must be a file or folder that exists when it is logged.")
        for file in sorted(found for found in path.rglob("*") if found.is_file()) if path.is_dir() else [path]:
            name = file.relative_to(path if path.is_dir() else path.parent).as_posix()
            target = artifact_path(f"{folder.strip('/')}/{name}" if folder else name)
            self._try(f"file {name}", lambda file=file, target=target: self._run.copy(file, target))  # type: ignore[misc]

    def _histogram(self, tag: str, make: Callable[[], Histogram], step: Any) -> None:
        number = self._run.step_of(step)

        def write() -> None:
            found = make()
            content = json.dumps(storable_json(found.as_json())).encode()
            self._run.write(step_path("histograms", tag, number, ".json"), content)
            self.image(tag, found.draw(), number)

        self._try(f"histogram {tag}", write)

    def _try(self, what: str, write: Callable[[], object]) -> None:
        """A library may raise anything for what a user gives it."""
        try:
            write()
        except Exception as error:
            self._run.losses.add(what, f"{type(error).__name__}: {error}.")
