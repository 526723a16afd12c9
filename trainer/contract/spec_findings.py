"""What a spec alone shows that its owner should know, before anything is built. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from syncnorm.norm.kind import KINDS, smallest_share
from syncnorm.trainer.contract.catalog.volume_args import VolumeArgs
from syncnorm.trainer.contract.norm_choice import statistics_group
from syncnorm.trainer.contract.spatial_maps import smallest_map, train_samples, uses_windows
from syncnorm.trainer.contract.spec import JobSpec, TrainSpec
from syncnorm.trainer.contract.text import counted


class Finding(BaseModel):
    """Something about the plan that you should know."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    code: str
    """What it is about, as a word for programs."""
    path: str
    """Field of the spec, or module path of the layer."""
    message: str
    """What will happen."""
    fix: str
    """What you can change."""
    severity: Literal["info", "warning", "error"]
    """A submit is refused for findings of severity `error`."""


def alike(findings: Sequence[Finding]) -> list[tuple[Finding, list[str]]]:
    """Identical findings about several places, once each, with the places; in the order of the first."""
    places: dict[Finding, list[str]] = {}
    for finding in findings:
        places.setdefault(finding.model_copy(update={"path": ""}), []).append(finding.path)
    return list(places.items())


def spec_findings(spec: JobSpec, kind: str) -> Iterator[Finding]:
    """kind: of the normalization, also where the spec says auto."""
    yield from _about_statistics(spec, kind)
    yield from _about_single_values(spec, kind)
    yield from _about_windows(spec, kind)
    if spec.model.inferer is not None:
        yield from unused_windows(spec, "model.inferer runs volumes there. Only `syncnorm predict` follows them")
    yield from _about_fields(spec)


def _about_single_values(spec: JobSpec, kind: str) -> Iterator[Finding]:
    """Batches that leave one value per channel, whose variance is undefined: training would fail at that step.

    Only if the spec tells how many samples there are and how small the maps get; an attempt checks the others before it
    trains.
    """
    per_worker = samples_together(spec)
    if per_worker is None or not KINDS[kind].batch_statistics or smallest_map(spec) != 1 or spec.norm.overrides:
        return
    workers, group = spec.resources.workers, statistics_group(spec, kind)
    if per_worker * group == 1:
        yield Finding(
            code="one_value_per_channel",
            path="data.batch_size",
            message=f"{kind} has 1 value per channel, whose variance is undefined: training would fail.",
            fix="Use a larger data.batch_size, sync_batch over more workers, or a kind without batch statistics.",
            severity="error",
        )
    samples = train_samples(spec)
    full = per_worker * workers
    if samples is None or spec.data.last_batch == "drop" or not reaches_last_batch(spec.train, -(-samples // full)):
        return
    rest = samples % full
    if any(rest and smallest_share(rest, size, min(group, size)) == 1 for size in world_sizes(spec)):
        yield last_batch_of_one(rest, full, "data.last_batch")


def last_batch_of_one(rest: int, full: int, path: str) -> Finding:
    """The same words before a submit and at the start of an attempt."""
    return Finding(
        code="uneven_last_batch",
        path=path,
        message=f"The last batch of an epoch has {rest} of {full} samples, so a statistic is taken from 1 value per "
        "channel, whose variance is undefined: training would fail there.",
        fix=LAST_BATCH_FIX,
        severity="error",
    )


ACCUMULATION_FIX = "Set train.accumulate_statistics: exact, or use a kind without batch statistics."
LAST_BATCH_FIX = "Set data.last_batch: drop, or choose a data.batch_size that divides the training data."


def reaches_last_batch(train: TrainSpec, batches: int) -> bool:
    """Whether training comes to the end of an epoch of so many batches."""
    return train.steps is None or train.steps * train.batches_per_step >= batches


def samples_together(spec: JobSpec) -> int | None:
    """Samples of a worker that are normalized together; None where only its loader knows."""
    per_worker = spec.data.batch_size
    return None if per_worker is None else per_worker * spec.train.joined_micro_batches


def world_sizes(spec: JobSpec) -> range:
    """How many workers an attempt may have."""
    res = spec.resources
    step = spec.norm.group if isinstance(spec.norm.group, int) else 1
    return range(res.min_workers or res.workers, res.workers + 1, step)


def _about_statistics(spec: JobSpec, kind: str) -> Iterator[Finding]:
    """Findings about the samples that batch statistics are taken from."""
    traits, workers, per_worker = KINDS[kind], spec.resources.workers, samples_together(spec)
    if traits.synchronizes and workers == 1:
        yield Finding(
            code="sync_on_one_worker",
            path="norm.kind",
            message=f"{kind} has no other worker to synchronize with.",
            fix="Use batch.",
            severity="info",
        )
    if traits.batch_statistics and not traits.synchronizes and per_worker and per_worker < 8 and workers > 1:
        yield Finding(
            code="few_samples_per_statistic",
            path="data.batch_size",
            message=f"{kind} takes its statistics from {counted(per_worker, 'sample')} a worker.",
            fix="Use sync_batch, group or a larger batch.",
            severity="warning",
        )
    if traits.batch_statistics and spec.train.accumulate > spec.train.joined_micro_batches:
        yield Finding(
            code="accumulation_splits_statistics",
            path="train.accumulate",
            message=f"Statistics are per micro-batch: {spec.train.accumulate} micro-batches do not equal one large "
            "batch.",
            fix=ACCUMULATION_FIX,
            severity="warning",
        )
    over_all = traits.synchronizes and spec.norm.group == "world"
    if traits.batch_statistics and spec.resources.min_workers is not None and not over_all:
        yield Finding(
            code="elastic_statistics",
            path="resources.min_workers",
            message=f"With fewer workers {kind} takes its statistics from more samples: the global batch stays "
            + (f"{per_worker * workers}." if per_worker else "as large."),
            fix="Use sync_batch over the world, or a kind without batch statistics.",
            severity="warning",
        )


def _about_windows(spec: JobSpec, kind: str) -> Iterator[Finding]:
    """Kinds that answer differently for a window than for the whole picture around it."""
    kinds = dict.fromkeys([kind, *(rule.kind for rule in spec.norm.overrides)])
    found = [name for name in kinds if KINDS[name].sample_statistics]
    if (by := uses_windows(spec)) is None or not found:
        return
    if spec.data.init_args.get("windows") == "joint":
        yield Finding(
            code="statistics_of_windows",
            path="data.init_args.windows",
            message=f"{' and '.join(found)} takes statistics from each sample by itself: from patches in training, and "
            "from whole volumes in validation and by syncnorm predict. An exported file takes them from the window "
            "that it is given. After training the job measures at what share of positions windows by themselves give "
            "another class (norm/windows.json).",
            fix="Keep the better one by val/dice, or use a kind with running statistics, such as sync_batch or "
            "batch_renorm.",
            severity="info",
        )
        return
    yield Finding(
        code="statistics_of_windows",
        path="norm.kind" if kind in found else "norm.overrides",
        message=f"{' and '.join(found)} takes statistics from each sample by itself, and {by} gives it windows: what "
        "the network answers at a position depends on where the windows lie. After training the job measures at what "
        "share of positions the class is another than for whole samples (norm/windows.json).",
        fix="Keep the windows as large in use as in training, or use a kind with running statistics, such as "
        "sync_batch or batch_renorm.",
        severity="warning",
    )


def unused_windows(spec: JobSpec, why: str) -> Iterator[Finding]:
    """Of settings of data `nifti` for windows that don't run here. why: a clause that says so."""
    if spec.data.name != "nifti":
        return
    fields = VolumeArgs.model_fields
    set_here = [
        name
        for name in ("windows", "overlap", "blending", "windows_at_once")
        if spec.data.init_args.get(name, fields[name].default) != fields[name].default
    ]
    if set_here:
        yield Finding(
            code="windows_without_effect",
            path=f"data.init_args.{set_here[0]}",
            message=f"{' and '.join(set_here)} {'does' if len(set_here) == 1 else 'do'} not affect validation: {why}.",
            fix=f"Leave {'it' if len(set_here) == 1 else 'them'} out of data.init_args.",
            severity="warning",
        )


def _about_fields(spec: JobSpec) -> Iterator[Finding]:
    """Findings about fields that conflict, or have effects that few expect."""
    workers, group = spec.resources.workers, spec.norm.group
    if isinstance(group, int) and workers % group:
        yield Finding(
            code="uneven_norm_groups",
            path="norm.group",
            message=f"{workers} workers can't be split into groups of {group}.",
            fix="Use a divisor of resources.workers.",
            severity="error",
        )
    other = spec.data.init_args.get("batch_size") if spec.data.class_path is not None else None
    if spec.data.batch_size is not None and other not in (None, spec.data.batch_size):
        yield Finding(
            code="batch_size_twice",
            path="data.init_args.batch_size",
            message=f"data.batch_size sets the samples per worker, {spec.data.batch_size}; the "
            f"{other!r} in data.init_args has no effect on that.",
            fix="Set both to the same number, or leave the one in init_args out.",
            severity="warning",
        )
    if spec.optimizer and spec.optimizer.weight_decay and spec.optimizer.decay_norm:
        yield Finding(
            code="norm_under_weight_decay",
            path="optimizer.decay_norm",
            message="Weight decay also shrinks the weights of normalization layers.",
            fix="Set decay_norm: false.",
            severity="info",
        )
