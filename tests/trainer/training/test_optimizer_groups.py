"""Groups of the optimizer: rates and decays by glob, and by the distance of a layer from the output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from syncnorm.trainer.contract.spec import OptimizerSpec, ScheduleSpec
from syncnorm.trainer.contract.spec_reader import read_spec
from syncnorm.trainer.errors import SpecError
from syncnorm.trainer.training.optim import build_optimizer, build_schedule
from syncnorm.trainer.training.parameters.depth import layer_numbers
from syncnorm.trainer.training.parameters.groups import parameter_groups
from syncnorm.trainer.worker.model_inspection import inspect
from tests.helpers.norm.pool import Pool
from tests.helpers.trainer.own_module_jobs import job
from tests.helpers.trainer.ranks import RecordingReporter, train


def spec(**changes: Any) -> dict[str, Any]:
    return {
        "name": "groups",
        "model": {"name": "cnn", "init_args": {"channels": [4, 8]}},
        "data": {"name": "digits", "batch_size": 128},
        "optimizer": {
            "name": "sgd",
            "lr": 0.1,
            "momentum": 0.9,
            "weight_decay": 0.01,
            "groups": [{"match": "features.0", "lr_factor": 0.0001}, {"match": "features", "weight_decay": 0.0}],
        },
        "schedule": {"name": "cosine"},
        "train": {"epochs": 2, "checkpoint_every": {"steps": 2}},
        "resources": {"workers": 2},
    } | changes


def rates(model: nn.Module, **optimizer: Any) -> dict[str, tuple[float, float]]:
    """(learning rate, weight decay) of each parameter."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, OptimizerSpec.model_validate({"lr": 1.0, "weight_decay": 0.5, **optimizer}))
    return {names[p]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}


def two_layers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))


def test_first_group_that_covers_a_parameter_counts_and_decay_norm_keeps_its_meaning() -> None:
    groups = [{"match": "0.weight", "lr_factor": 0.1}, {"match": "[01]", "lr_factor": 2.0, "weight_decay": 0.25}]

    found = rates(two_layers(), groups=groups)
    decays_all = rates(two_layers(), groups=groups, decay_norm=True)

    assert found == {
        "0.weight": (0.1, 0.5),
        "0.bias": (2.0, 0.0),
        "1.weight": (2.0, 0.0),
        "1.bias": (2.0, 0.0),
        "2.weight": (1.0, 0.5),
        "2.bias": (1.0, 0.0),
    }
    assert {name: decay for name, (_, decay) in decays_all.items()} == {
        name: 0.25 if name in ("0.bias", "1.weight", "1.bias") else 0.5 for name in found
    }


def test_layer_decay_multiplies_with_groups() -> None:
    found = rates(two_layers(), layer_decay=0.5, groups=[{"match": "0", "lr_factor": 0.1}])

    assert {name: rate for name, (rate, _) in found.items()} == {
        "0.weight": 0.05,
        "0.bias": 0.05,
        "1.weight": 0.5,
        "1.bias": 0.5,
        "2.weight": 1.0,
        "2.bias": 1.0,
    }


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)
        self.shortcut = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2))


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.ones(1, 2))
        self.stem, self.bn = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)
        self.blocks = nn.Sequential(Block(), Block())


@pytest.mark.parametrize("head_first", [False, True])
def test_layers_of_a_backbone_are_found_inside_of_another_module(head_first: bool) -> None:
    """As an element of a Sequential, and as a child."""
    parts = {"net": Backbone(), "head": nn.Linear(2, 2)}
    model = nn.Sequential(parts["net"], parts["head"])
    if head_first:
        model = nn.Module()  # type: ignore[assignment]
        model.net, model.head = parts["net"], parts["head"]

    names = {parameter: name for name, parameter in model.named_parameters()}
    found = {parameter: layer_numbers(model)[name] for parameter, name in names.items()}

    net: Any = parts["net"]
    assert [found[net.token], found[net.stem.weight], found[net.bn.weight]] == [0, 0, 0]
    assert [{found[p] for p in block.parameters()} for block in net.blocks] == [{1}, {2}]
    assert found[parts["head"].weight] == 3


def test_schedule_scales_every_group_alike() -> None:
    optimizer = build_optimizer(two_layers(), OptimizerSpec.model_validate({"lr": 1.0, "layer_decay": 0.5}))
    schedule = build_schedule(optimizer, ScheduleSpec(name="step", step_size=1, gamma=0.1), 3)

    optimizer.step()
    schedule.step()

    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.05, 0.1])


def test_logged_rate_is_that_of_the_spec_whatever_the_first_group_has(ranks: Pool, tmp_path: Path) -> None:
    ranks.run(train, 2, str(tmp_path), spec())

    points = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    logged = [point["value"] for point in points if point["key"] == "lr"]
    assert logged == pytest.approx([0.05, 0.0], abs=1e-9)  # cosine: half of it is over after the first of two epochs


@pytest.mark.parametrize("stop_at", [3, 6])
def test_stopped_with_groups_and_layer_decay(stop_at: int, ranks: Pool, tmp_path: Path) -> None:
    document = spec()
    document["optimizer"]["layer_decay"] = 0.7
    whole = ranks.run(train, 2, str(tmp_path / "whole"), document)[0]

    ranks.run(train, 2, str(tmp_path / "1"), document, None, RecordingReporter(stop_at=stop_at))
    newest = max((tmp_path / "1" / "checkpoints").iterdir())
    resumed = ranks.run(train, 2, str(tmp_path / "2"), document, str(newest))[0]

    assert [name for name, tensor in whole.state.items() if not torch.equal(tensor, resumed.state[name])] == []
    assert resumed.metrics == whole.metrics


def test_plan_shows_groups_and_names_those_without_parameters() -> None:
    document = spec()
    document["optimizer"]["groups"].append({"match": "features.1", "lr_factor": 2.0})

    found = inspect(read_spec(document))

    assert found.parameters is not None
    groups = {(group.match, group.weight_decay): (group.parameters, group.lr) for group in found.parameters.groups}
    assert groups[("features.0", 0.01)] == (36, pytest.approx(1e-5))
    assert groups[(None, 0.01)][1] == 0.1
    assert sum(group.parameters for group in found.parameters.groups) == found.parameters.total
    (idle,) = [finding for finding in found.findings if finding.code == "group_without_parameters"]
    assert idle.path == "optimizer.groups"
    assert "features.1" in idle.message


def test_groups_of_a_module_of_the_user(ranks: Pool, tmp_path: Path) -> None:
    groups = [{"match": "net.0", "lr_factor": 0.5}]
    document = job("NoOptimizer", optimizer={"name": "adamw", "lr": 0.01, "groups": groups})

    found = inspect(read_spec(document)).parameters

    assert found is not None
    assert {(group.match, group.lr) for group in found.groups} == {("net.0", 0.005), (None, 0.01)}
    with pytest.raises(
        ValueError, match=r"^optimizer.groups: 'nets' must match a module or a parameter.*Near it are net"
    ):
        rates_of = job("NoOptimizer", optimizer={"name": "sgd", "groups": [{"match": "nets"}]})
        ranks.run(train, 1, str(tmp_path), rates_of)


@pytest.mark.parametrize("option", [{"layer_decay": 0.5}, {"groups": [{"match": "*", "lr_factor": 0.5}]}])
def test_lbfgs_has_one_group(option: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match="lbfgs has one group of parameters"):
        read_spec(spec(optimizer={"name": "lbfgs", **option}))
