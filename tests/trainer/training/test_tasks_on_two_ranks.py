"""Every task of a plain network: two workers train what one does, and a user's data says what it is for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from syncnorm.trainer.contract.spec_reader import read_spec
from syncnorm.trainer.data import DataInfo, build_data
from syncnorm.trainer.worker.model_inspection import inspect
from tests.helpers.norm.pool import Pool
from tests.helpers.trainer.ranks import train

OWN = "tests.helpers.trainer.own_tasks"


def job(workers: int, data: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "name": "task",
        "model": {"class_path": f"{OWN}.Small", "init_args": {"in_channels": 5}},
        "data": data | {"batch_size": 8 // workers},
        "norm": {"kind": "sync_batch"},
        "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
        # 46 samples in batches of 8: the last one has 6; of 43 it has 3, which two workers can't halve.
        "train": {"epochs": 2, "precision": "64-true", "checkpoint_every": {"epochs": 2}},
        "resources": {"workers": workers},
    } | changes


def own(kind: str, **init_args: Any) -> dict[str, Any]:
    return {"class_path": f"{OWN}.Targets", "init_args": {"kind": kind, **init_args}}


def synthetic(task: str) -> dict[str, Any]:
    return {"name": "synthetic", "init_args": {"shape": [5], "task": task, "samples": 43, "val_samples": 9}}


TASKS = {
    "number": (own("number"), ("mae", "rmse")),
    "numbers": (own("numbers"), ("mae", "rmse")),
    "labels": (own("labels"), ("map_micro", "accuracy")),
    "synthetic numbers": (synthetic("regression"), ("mae", "rmse")),
    "synthetic labels": (synthetic("multilabel"), ("map_micro", "accuracy")),
}


@pytest.mark.parametrize("task", TASKS)
def test_two_workers_equal_one_with_the_large_batch(ranks: Pool, tmp_path: Path, task: str) -> None:
    data, scores = TASKS[task]
    two = ranks.run(train, 2, str(tmp_path / "two"), job(2, data))
    one = ranks.run(train, 1, str(tmp_path / "one"), job(1, data))[0]

    # fp64: a dozen steps amplify rounding of 1e-16 by some orders, nothing more.
    for name, tensor in one.state.items():
        torch.testing.assert_close(two[0].state[name], tensor, rtol=1e-9, atol=1e-9)
    assert two[0].metrics == two[1].metrics
    for name in ("train/loss", "val/loss", *(f"val/{score}" for score in scores)):
        # Losses and errors are summed in fp64; torchmetrics divides in fp32.
        assert two[0].metrics[name] == pytest.approx(one.metrics[name], rel=1e-6)


@pytest.mark.parametrize("task", ["regression", "multilabel"])
def test_equivalence_is_proved_for_it(ranks: Pool, tmp_path: Path, task: str) -> None:
    ranks.run(train, 2, str(tmp_path), job(2, synthetic(task), diagnostics=["equivalence"]))

    records = (tmp_path / "artifacts" / "diagnostics" / "equivalence.json").read_text()
    assert '"equal": true' in records
    assert '"equal": false' not in records


@pytest.mark.parametrize(
    ("data", "info"),
    [
        (own("number"), DataInfo("regression", 1, (5,))),
        (own("numbers"), DataInfo("regression", 3, (5,))),
        (own("labels"), DataInfo("multilabel", 3, (5,))),
        (own("labels", num_classes=3), DataInfo("multilabel", 3, (5,))),
        (own("flags"), DataInfo("multilabel", 3, (5,))),
        (own("floating labels", task="multilabel"), DataInfo("multilabel", 3, (5,))),
        (own("floating labels", task="regression"), DataInfo("regression", 3, (5,))),
        (own("counts", task="regression"), DataInfo("regression", 3, (5,))),
        (own("classes", num_classes=3), DataInfo("classification", 3, (5,))),
    ],
)
def test_the_task_follows_from_the_targets_or_the_attribute(data: dict[str, Any], info: DataInfo) -> None:
    assert build_data(read_spec(job(1, data)).data, 0).info == info


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            own("floating labels"),
            r"must say in its attribute task .* all of them 0 or 1. Set it to regression or multil",
        ),
        (
            own("number", num_classes=3),
            r"must say in its attribute task .* float32 of shape \(\) and 3 classes. Set it",
        ),
        (own("classes"), r"must have an attribute num_classes"),
        (own("numbers", task="ranking"), r"must have one of classification, .* in its attribute task, got 'ranking'"),
        (
            own("numbers", task="multilabel"),
            r"must have targets of 0 and 1, one for each of at least two labels, got \[-",
        ),
        (own("numbers", task="regression", num_classes=2), r"has num_classes = 2, but 3 values in a target"),
        (own("grid"), r"must have targets that are numbers or vectors for regression, got float32 of shape \(1, 3\)"),
    ],
)
def test_data_whose_task_is_unclear_says_what_to_set(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"^data.class_path: {OWN}.Targets {message}"):
        build_data(read_spec(job(1, data)).data, 0)


def test_batch_size_left_out_is_that_of_the_users_loader(ranks: Pool, tmp_path: Path) -> None:
    document = job(2, own("number"))  # of 4 samples, as those of the loader
    del document["data"]["batch_size"]

    said = ranks.run(train, 2, str(tmp_path / "said"), job(2, own("number")))[0]
    left_out = ranks.run(train, 2, str(tmp_path / "out"), document)[0]

    assert left_out.metrics == said.metrics
    torch.testing.assert_close(left_out.state, said.state, rtol=0, atol=0)
    assert inspect(read_spec(document)).batch_size == 4


@pytest.mark.parametrize(
    ("num_classes", "data", "message"),
    [
        (1, "numbers", "network must return numbers of shape (2, 3), got (2, 1). The data has 3 numbers"),
        (2, "labels", "network must return label scores of shape (2, 3), got (2, 2). The data has 3 labels"),
    ],
)
def test_plan_says_what_the_network_must_return(num_classes: int, data: str, message: str) -> None:
    model = {"class_path": f"{OWN}.Small", "init_args": {"in_channels": 5, "num_classes": num_classes}}

    found = inspect(read_spec(job(1, own(data), model=model))).findings

    assert message in found[0].message
    assert found[0].severity == "error"


@pytest.mark.parametrize("name", ["mlp", "cnn"])
@pytest.mark.parametrize("task", ["regression", "multilabel"])
def test_built_in_networks_do_it(name: str, task: str) -> None:
    data = {"name": "synthetic", "init_args": {"shape": [3, 8, 8], "task": task, "samples": 64}}
    inspection = inspect(read_spec(job(2, data, model={"name": name})))

    assert [one for one in inspection.findings if one.severity == "error"] == []
    assert inspection.guarantees is not None
    assert inspection.guarantees.equals_one_device.holds == "yes"
