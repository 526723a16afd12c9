"""Writes what a module logs to the attempt's folder, from where senders deliver it to the run."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from syncnorm.trainer.contract.mlflow_rest import mlflow_name
from syncnorm.trainer.contract.spec import JobSpec
from syncnorm.trainer.contract.text import storable, text_of
from syncnorm.trainer.reporting.metric_spool import Spool
from syncnorm.trainer.reporting.run_logger.journal import Entry, append_entry, journal_path, read_journal
from syncnorm.trainer.reporting.run_logger.losses import Losses
from syncnorm.trainer.storage.atomic_files import TEMPORARY

logger = logging.getLogger(__name__)

MOST_PARAMS = 1000
"""As many as a spec may have. The rest is left out."""
LONGEST_PARAM, LONGEST_TAG = 6000, 8000
"""Of MLflow (mlflow 3.17)."""
_LARGEST_STEP = 2**53
_OF_THE_SERVICE = ("syncnorm.",)
"""Tags by which the service finds a run."""


def _types(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) or (annotation,)


_SPEC_VALUES = {
    name
    for name, field in JobSpec.model_fields.items()
    if not any(isinstance(each, type) and issubclass(each, BaseModel) for each in _types(field.annotation))
}
_OWN_PARAMS = "hparams/"


@dataclass(frozen=True)
class Limits:
    """Most files of one job, over all attempts, and most bytes in them."""

    files: int = 10_000
    bytes: int = 4 * 2**30


class RunWriter:
    """Never raises for a full disk or a limit: these are losses. Raises: ValueError for what is no metric or no step.

    current_step: the step of what is logged without one. earlier: artifacts of the job's earlier attempts.
    """

    def __init__(
        self,
        spool: Spool,
        artifacts: Path,
        current_step: Callable[[], int],
        earlier: Sequence[Path] = (),
        limits: Limits = Limits(),
    ) -> None:
        self.losses = Losses()
        self._spool = spool
        self._artifacts = artifacts
        self._current_step = current_step
        self.earlier = earlier
        self._limits = limits
        self._sizes: dict[str, int] | None = None
        self._newest: dict[str, tuple[int, float]] = {}
        self._params: dict[str, str] = {}
        self._tags: dict[str, str] = {}
        self._renamed: set[str] = set()

    def step_of(self, step: Any) -> int:
        """`step`, or the current one if it is None."""
        number = self._current_step() if step is None else step
        try:
            return int(number)
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(
                f"a step must be a whole number; got {number!r}. Pass for example self.global_step."
            ) from error

    def metrics(self, values: Mapping[str, Any], step: Any = None, at_ms: int | None = None) -> None:
        """Record numbers. Nested mappings become `outer/inner`.

        Of several values of a key at one step the first counts, because a resumed attempt repeats steps.
        """
        number = self.step_of(step)
        points = {self._metric_name(name): value for name, value in numbers(values)}
        if not 0 <= number <= _LARGEST_STEP:
            for name in points:
                self.losses.add(f"metric {name}", f"A step must be 0 to 2^53; got {number}.")
            return
        new = {name: value for name, value in points.items() if self._is_first(name, number, value)}
        if new:
            self._attempt("metrics", lambda: self._spool.append(new, number, at_ms))

    def params(self, values: Mapping[str, Any]) -> None:
        """Record params. The first value of a param stays: MLflow changes none. A long one is cut, and the cut said."""
        for key, value in values.items():
            text = text_of(value)
            name = mlflow_name(storable(f"{_OWN_PARAMS}{key}" if _is_of_the_spec(str(key)) else str(key)))
            known = self._params.get(name)
            if known is not None and known != text:
                self.losses.add(f"param {name}", f"It has a value already, which can't be changed: {known}.")
            elif known is None and len(self._params) >= MOST_PARAMS:
                self.losses.add("params", f"A run takes {MOST_PARAMS} of them; the first left out is {name}.")
            elif known is None:
                if len(text) > LONGEST_PARAM:
                    self.losses.add(f"param {name}", f"It is cut to {LONGEST_PARAM} of {len(text)} characters.")
                self._params[name] = text
                self.note(Entry("param", name, storable(text, LONGEST_PARAM)))

    def tags(self, values: Mapping[str, Any]) -> None:
        """Set tags; the last value of a tag counts."""
        for key, value in values.items():
            name, text = mlflow_name(storable(str(key))), text_of(value)
            if name.startswith(_OF_THE_SERVICE):
                self.losses.add(
                    f"tag {name}", "Tags that begin with syncnorm. belong to the service. Use another name."
                )
            elif self._tags.get(name) != text:
                self._tags[name] = text
                self.note(Entry("tag", name, storable(text, LONGEST_TAG)))

    def write(self, path: str, content: bytes) -> None:
        """Keep `content` as the artifact `path`, of artifact_paths. One of the same path is replaced."""
        self._keep(path, len(content), lambda partial: partial.write_bytes(content))

    def copy(self, source: Path, path: str) -> None:
        """Keep a copy of a file as the artifact `path`. Its later changes don't count."""
        self._keep(path, source.stat().st_size, lambda partial: shutil.copyfile(source, partial))

    def say_losses(self) -> None:
        """Write what was lost so far to the log and to the run."""
        if (summary := self.losses.summary()) and self._tags.get("syncnorm.not_logged") != summary:
            logger.warning("left out of the MLflow run, in all: %s", summary)
            self._tags["syncnorm.not_logged"] = summary
            self.note(Entry("tag", "syncnorm.not_logged", storable(summary, LONGEST_TAG)))

    def _metric_name(self, name: str) -> str:
        allowed = mlflow_name(storable(name))
        if allowed != name and name not in self._renamed:
            self._renamed.add(name)
            logger.info("the metric %r is called %r in MLflow, which refuses its own name", name, allowed)
        return allowed

    def _is_first(self, name: str, step: int, value: float) -> bool:
        newest_step, newest = self._newest.get(name, (-1, 0.0))
        if newest_step == step:
            if repr(newest) != repr(value):  # NaN differs from itself
                self.losses.add(
                    f"metric {name}",
                    f"It has several values at step {step}, of which the first counts. Log their mean, or pass a step.",
                )
            return False
        self._newest[name] = (step, value)
        return True

    def _keep(self, path: str, size: int, write: Callable[[Path], object]) -> None:
        """The file is whole or missing; the next reader of its journal line finds it."""
        sizes = self._known_sizes()
        others = sum(sizes.values()) - sizes.get(path, 0)
        if path not in sizes and len(sizes) >= self._limits.files:
            self.losses.add(
                "files", f"A job keeps {self._limits.files} of them; the first left out is {path}. Log less often."
            )
        elif others + size > self._limits.bytes:
            limit = self._limits.bytes / 2**20
            self.losses.add(
                "files", f"A job keeps {limit:g} MiB of them; the first left out is {path}. Log less often."
            )
        elif self._attempt(f"file {path}", lambda: self._replace(self._artifacts / path, write)):
            sizes[path] = size
            self.note(Entry("file", path, str(size)))

    def _replace(self, target: Path, write: Callable[[Path], object]) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f"{TEMPORARY}{target.name}")
        try:
            write(partial)
            partial.rename(target)
        finally:
            partial.unlink(missing_ok=True)

    def _known_sizes(self) -> dict[str, int]:
        """Files of this job and their sizes, with those of earlier attempts."""
        if self._sizes is None:
            entries = [entry for folder in self.earlier for entry, _ in read_journal(journal_path(folder))]
            self._sizes = {
                one.name: int(one.value) for one in entries if one and one.kind == "file" and one.value.isdigit()
            }
        return self._sizes

    def note(self, entry: Entry) -> None:
        """Add a line to the journal."""
        self._attempt(f"{entry.kind} {entry.name}", lambda: append_entry(self._artifacts, entry))

    def _attempt(self, what: str, write: Callable[[], object]) -> bool:
        try:
            write()
        except OSError as error:
            self.losses.add(what, f"It can't be written to the job's folder: {error}.")
            return False
        return True


def numbers(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Names and numbers of metrics, flattened. Raises: ValueError naming the one that is no number."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from numbers(value, f"{name}/")
            continue
        try:
            yield name, _number(value)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            shape = f" of shape {tuple(value.shape)}" if hasattr(value, "shape") else ""
            raise ValueError(
                f"a metric must be one number; got {type(value).__name__}{shape} for {name!r}. Log its mean, for "
                "example, or use log_text or log_dict for what is no number."
            ) from error


def _number(value: Any) -> float:
    if isinstance(value, str | bytes):
        raise TypeError("a text, even if float() could read it")
    return float(value.detach() if hasattr(value, "detach") else value)


def _is_of_the_spec(key: str) -> bool:
    """Whether a param of this name could be one of the job's spec."""
    head, dot, _ = key.partition(".")
    return head in JobSpec.model_fields and (bool(dot) or head in _SPEC_VALUES)
