"""What modules call on a run of wandb: `log` of numbers, pictures, tables and histograms, `config` and `summary`.

wandb itself need not be installed. Its media are known by what they offer (wandb 0.31).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from syncnorm.trainer.reporting.run_logger.media_writer import MediaWriter
from syncnorm.trainer.reporting.run_logger.run_writer import RunWriter, numbers
from syncnorm.trainer.reporting.run_logger.table_writer import TableWriter

NOT_TAKEN = (
    "alert",
    "define_metric",
    "finish_artifact",
    "link_artifact",
    "link_model",
    "log_code",
    "log_model",
    "mark_preempting",
    "upsert_artifact",
    "use_artifact",
    "use_model",
    "watch",
)
"""Verbs for which a run of MLflow has no form."""


class WandbVerbs:
    """commit, sync and other options of a client have no meaning here."""

    def __init__(
        self, run: RunWriter, media: MediaWriter, tables: TableWriter, run_id: str, folder: Callable[[], str]
    ) -> None:
        self._run = run
        self._media = media
        self._tables = tables
        self._folder = folder
        self.id = run_id
        self.config = Assignments(run.params)
        self.summary = Assignments(self.log)

    @property
    def dir(self) -> str:
        """A folder for files, as `self.logger.log_dir`."""
        return self._folder()

    def log(self, data: Mapping[str, Any], step: Any = None, commit: bool | None = None, sync: Any = None) -> None:
        """Each value by what it is: a number, a figure, a picture or a list of them, a table, a histogram or a text.

        Nested mappings become `outer/inner`. Anything else is counted as left out.
        """
        for key, value in data.items():
            if isinstance(value, Mapping):
                self.log({f"{key}/{inner}": each for inner, each in value.items()}, step)
            elif not (self._number(key, value, step) or self._medium(key, value, step)):
                why = (
                    f"It is a {type(value).__name__}. Log a number, a figure, an image, a table, a histogram or a text."
                )
                self._run.losses.add(f"log of {key}", why)

    def save(self, glob_str: str | Path, base_path: Any = None, policy: Any = "live") -> None:
        """Files as artifacts of the run, as they are now."""
        path = Path(glob_str)
        for file in sorted(path.parent.glob(path.name)) or [path]:
            self._media.copy(file)

    def unwatch(self, *args: Any, **options: Any) -> None:
        """Nothing is watched."""

    def finish(self, *args: Any, **options: Any) -> None:
        """The job closes what it opened."""

    def _number(self, key: str, value: Any, step: Any) -> bool:
        try:
            found = dict(numbers({key: value}))
        except ValueError:
            return False
        self._run.metrics(found, step)
        return True

    def _medium(self, key: str, value: Any, step: Any) -> bool:
        if isinstance(value, str):
            self._media.text(value, key, step)
        elif _is_figure(value):
            self._media.figure(key, value, step)
        elif _is_table(table := getattr(value, "table", value)):  # a chart of wandb.plot has the table that it shows
            columns = None if hasattr(table, "itertuples") else table.columns
            self._tables.add(table if columns is None else table.data, f"{key}.json", columns=columns, step=step)
        elif hasattr(value, "histogram") and hasattr(value, "bins"):
            self._media.counts(key, value.histogram, value.bins, step)
        elif images := _images(value):
            self._images(key, images, step)
        elif getattr(value, "ndim", 0):
            self._media.histogram(key, value, step)  # as wandb takes tensors and arrays
        else:
            return False
        return True

    def _images(self, key: str, images: list[Any], step: Any) -> None:
        for index, image in enumerate(images):
            self._media.image(key, image, step, index=index)
            if getattr(image, "_masks", None) or getattr(image, "_boxes", None):
                why = "The image is in the run without them. Draw them into it, for example with torchvision.utils."
                self._run.losses.add(f"masks and boxes of {key}", why)
        captions = [str(found) if (found := getattr(image, "_caption", None)) else "" for image in images]
        if any(captions):
            self._media.text("\n".join(captions), f"{key}/captions", step)


class Assignments:
    """Values that are set by name: `a.update({"lr": 1})`, `a["lr"] = 1` or `a.lr = 1`."""

    _write: Callable[[Mapping[str, Any]], object]

    def __init__(self, write: Callable[[Mapping[str, Any]], object]) -> None:
        object.__setattr__(self, "_write", write)

    def update(self, values: Mapping[str, Any] | Any = (), allow_val_change: bool | None = None, **more: Any) -> None:
        given = values if isinstance(values, Mapping) else dict(values) if isinstance(values, tuple) else vars(values)
        self._write({**given, **more})

    def setdefaults(self, values: Mapping[str, Any]) -> None:
        self._write(values)

    def __setitem__(self, name: str, value: Any) -> None:
        self._write({name: value})

    def __setattr__(self, name: str, value: Any) -> None:
        self._write({name: value})


def _is_figure(value: Any) -> bool:
    """Of matplotlib, plotly or seaborn."""
    return any(
        hasattr(each, verb) for each in (value, getattr(value, "figure", None)) for verb in ("savefig", "write_html")
    )


def _is_table(value: Any) -> bool:
    return hasattr(value, "itertuples") or (hasattr(value, "columns") and hasattr(value, "data"))


def _images(value: Any) -> list[Any]:
    """The pictures that a value is or holds; none if it holds anything else."""
    several = list(value) if isinstance(value, list | tuple) else [value]
    return several if all(_is_image(each) for each in several) else []


def _is_image(value: Any) -> bool:
    """A picture of PIL, or a wrapper of one, such as wandb.Image or mlflow.Image."""
    return (
        hasattr(value, "thumbnail") or hasattr(value, "to_pil") or hasattr(getattr(value, "image", None), "thumbnail")
    )
