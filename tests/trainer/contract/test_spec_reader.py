"""A job spec is read whole, or refused with the path of everything that is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from syncnorm.trainer.contract.spec_reader import read_spec
from syncnorm.trainer.errors import SpecError
from tests.helpers.paths import EXAMPLES

JOBS = sorted(EXAMPLES.glob("*.yaml"))


def spec(**changes: Any) -> dict[str, Any]:
    return {"name": "a", "model": {"name": "resnet"}, "data": {"name": "digits", "batch_size": 4}} | changes


def problems(document: Any) -> dict[str, str]:
    with pytest.raises(SpecError) as refused:
        read_spec(document)
    return {problem.path: problem.message for problem in refused.value.problems}


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_examples_are_valid(path: Path) -> None:
    assert read_spec(yaml.safe_load(path.read_text())).name


def test_every_default_is_filled_in_and_reading_again_changes_nothing() -> None:
    once = read_spec(spec())

    assert once.model.init_args == {"depth": 14, "width": 16, "activation": "relu"}
    assert (once.norm.kind, once.train.epochs, once.train.steps) == ("sync_batch", 10, None)
    assert read_spec(once.model_dump(mode="json")) == once


@pytest.mark.parametrize(
    ("changes", "path", "says"),
    [
        ({"model": {"name": "resnt"}}, "model.name", "must be one of cnn, lstm"),
        ({"model": {}}, "model", "exactly one of name"),
        ({"model": {"name": "resnet", "init_args": {"depth": 9}}}, "model.init_args", "depth must be 6n+2"),
        ({"model": {"name": "resnet", "init_args": {"dept": 8}}}, "model.init_args.dept", "did you mean depth?"),
        ({"norm": {"grup": "world"}}, "norm.grup", "did you mean group? it may be affine, eps, group, kind, momentum"),
        (
            {"norm": {"overrides": [{"match": "a", "kind": "layer", "options": {}, "zz": 1}]}},
            "norm.overrides.0.zz",
            "not a known field; it may be kind, match, options",
        ),
        ({"export": {"checkpoint": "best"}}, "export.checkpoint", "best needs train.keep_best"),
        ({"export": {"checkpoint": 30}}, "export.checkpoint", "a job has no steps yet when you submit it"),
        (
            {"export": {"statistics": "population"}, "statistics": {"population": "none"}},
            "export.statistics",
            "needs statistics.population to be pooled or paper",
        ),
        ({"export": {"module": "net/backbone"}}, "export.module", "pattern"),
        ({"train": {"checkpoint_every": {"step": 5}}}, "train.checkpoint_every.step", "did you mean steps?"),
        (
            {"data": {"name": "digits", "batch_size": 8, "init_args": {"x": 1}}},
            "data.init_args.x",
            "may be augment, val_fraction",
        ),
        ({"data": {"name": "digits", "batch_size": "4"}}, "data.batch_size", "valid integer"),
        ({"data": {"name": "digits", "batch_size": True}}, "data.batch_size", "valid integer"),
        ({"norm": {"kind": "bach"}}, "norm.kind", "must be one of none, batch, sync_batch"),
        ({"norm": {"kind": "group", "options": {"num_groups": 0}}}, "norm.options.num_groups", "at least 1"),
        ({"norm": {"kind": "batch", "options": {"num_groups": 4}}}, "norm.options.num_groups", "no such option"),
        ({"norm": {"kind": "auto", "options": {"r_max": 3}}}, "norm.options", "auto picks its own"),
        (
            {"norm": {"overrides": [{"match": "a", "kind": "layer"}, {"match": "b", "kind": "x"}]}},
            "norm.overrides.1.kind",
            "must be one of",
        ),
        ({"resources": {"workers": 0}}, "resources.workers", "must be at least 1; got"),
        ({"train": {"epochs": 1, "steps": 1}}, "train", "epochs or steps, not both"),
        ({"train": {"graph": True}}, "", "resources.gpus_per_worker is 0; set it to 1"),
        ({"train": {"graph": True, "accumulate": 2}}, "train", "leave accumulate out"),
        ({"train": {"graph": True, "precision": "16-mixed"}}, "train", "use bf16-mixed"),
        ({"train": {"graph": True, "ddp": {"find_unused_parameters": True}}}, "train", "ddp.find_unused_parameters"),
        ({"train": {"checkpoint_every": {}}}, "train.checkpoint_every", "exactly one of epochs and steps"),
        ({"optimizer": {"name": "adam", "momentum": 0.9}}, "optimizer", "momentum is for sgd"),
        ({"optimizer": {"lr": float("inf")}}, "optimizer.lr", "finite"),
        ({"seed": -1}, "seed", "must be at least 0; got"),
        ({"nam": "x"}, "nam", "did you mean name?"),
        ({"diagnostics": ["landscape", "landscape"]}, "diagnostics", "once"),
        ({"env": {"RAY_AUTH_TOKEN": "x"}}, "env.RAY_AUTH_TOKEN", "belong to the service"),
        ({"resources": {"workers": 4, "min_workers": 5}}, "resources", "must not exceed workers"),
    ],
)
def test_mistake_is_named_by_its_path(changes: dict[str, Any], path: str, says: str) -> None:
    found = problems(spec(**changes))

    assert list(found) == [path]
    assert says in found[path]


def test_all_problems_are_told_at_once() -> None:
    found = problems(spec(model={"name": "x"}, norm={"kind": "y"}, data={"name": "z", "batch_size": 1}))

    assert set(found) == {"model.name", "norm.kind", "data.name"}


@pytest.mark.parametrize("document", [None, [], "text", 3, {"name": {1: 2}}])
def test_what_is_no_spec_at_all_is_refused(document: Any) -> None:
    assert problems(document)
