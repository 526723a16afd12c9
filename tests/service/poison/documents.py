"""Good documents, into which one extreme at a time is put. Every part that may be left out is there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from syncnorm.norm.kind import KINDS
from syncnorm.service.jobs.study_spec import StudySpec
from syncnorm.trainer.contract.catalog.names import DATASETS, MODELS
from syncnorm.trainer.contract.spec import JobSpec
from tests.service.poison.extremes import ANYTHING, Poison, extremes, placed, places, poisons, written

JOB: dict[str, Any] = {
    "name": "poison",
    "project": "demo",
    "labels": {"works": "999"},  # its driver trains until it is stopped
    "priority": 0,
    "seed": 0,
    "model": {"class_path": "mine.Model", "init_args": {}},
    "data": {"class_path": "mine.Data", "batch_size": 8, "init_args": {}},
    "norm": {"kind": "batch", "overrides": [{"match": "head.*", "kind": "frozen_batch"}]},
    "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9, "betas": [0.9, 0.999]},
    "schedule": {"name": "cosine", "warmup_steps": 10},
    "train": {
        "epochs": 10,
        "early_stopping": {"monitor": "val/loss"},
        "keep_best": {"monitor": "val/loss"},
        "checkpoint_every": {"epochs": 1},
    },
    "resources": {"workers": 2, "min_workers": 1},
    "limits": {"max_failures": 1, "grace_s": 10},
    "statistics": {"every": {"epochs": 1}},
    "diagnostics": ["landscape"],
    "export": {"formats": ["pt2"], "register_as": "mine"},
    "env": {"A": "1"},
}
SHARE = 16
"""Of values of the wrong type, the short forms take one in so many."""
SECTIONS = tuple(JobSpec.model_fields)
STUDY: dict[str, Any] = {
    "name": "study",
    "base": {**JOB, "train": {"epochs": 1}, "resources": {"workers": 1}},
    "grid": {"optimizer.lr": [0.1, 0.2]},
    "seeds": [0],
    "metrics": ["val/error"],
    "curves": ["train/loss"],
    "claims": [
        {"text": "Slow is good.", "less": {"optimizer.lr": 0.1}, "than": {"optimizer.lr": 0.2}, "metric": "val/error"}
    ],
}


def of_section(section: str, share: int) -> list[Poison]:
    """The extremes of every field of one section of the job spec. share: as in `extremes`, here and below."""
    return poisons(JobSpec, JOB, section, share)


def of_catalog(share: int) -> Iterator[Poison]:
    """Of the arguments of every built-in model, data set and kind of norm."""
    for part, catalog in (("model", MODELS), ("data", DATASETS)):
        for name, arguments in catalog.items():
            rest = {"batch_size": 8} if part == "data" else {}
            base = placed(JOB, (part,), {"name": name, "init_args": {}, **rest})
            for place in places(arguments):
                for extreme, value in extremes(place, share).items():
                    path = (part, "init_args", *place.path)
                    yield Poison(f"{name}.{place.name}: {extreme}", written(placed(base, path, value)), name)
    for kind, traits in KINDS.items():
        for option in traits.options:
            for extreme, value in list(ANYTHING.items())[:: min(share, 3)]:
                document = placed(JOB, ("norm",), {"kind": kind, "options": {option: value}})
                yield Poison(f"{kind}.{option}: {extreme}", written(document), kind)


def of_study(share: int) -> Iterator[Poison]:
    """Of every field of a study, and of values of an axis, which become fields of jobs."""
    yield from poisons(StudySpec, STUDY, share=share)
    for axis in ("optimizer.lr", "train.steps", "limits.deadline_s", "model.init_args", "norm.options", "labels"):
        for extreme, value in list(ANYTHING.items())[:: min(share, 3)]:
            document = {**STUDY, "claims": [], "grid": {axis: [value]}}
            yield Poison(f"grid.{axis}: {extreme}", written(document), "grid")
