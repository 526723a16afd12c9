"""What model.freeze names is not trained, until its moment comes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from syncnorm.trainer.contract.spec_reader import read_spec
from syncnorm.trainer.errors import SpecError
from syncnorm.trainer.training.parameters.matching import match
from syncnorm.trainer.worker.model_inspection import inspect
from tests.helpers.combinations import each_value
from tests.helpers.norm.pool import Pool
from tests.helpers.trainer.few_digits import BATCH, train
from tests.helpers.trainer.own_module_jobs import job
from tests.helpers.trainer.ranks import RecordingReporter, TrainedModel


def spec(*freeze: Any, workers: int = 2, **train_changes: Any) -> dict[str, Any]:
    return {
        "name": "frozen",
        "model": {"name": "cnn", "init_args": {"channels": [4, 8]}, "freeze": list(freeze)},
        "data": {"name": "digits", "batch_size": BATCH // workers},
        "norm": {"kind": "sync_batch"},
        "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4},
        "train": {"epochs": 2, "checkpoint_every": {"steps": 2}} | train_changes,
        "statistics": {"every": {"steps": 2}},
        "resources": {"workers": workers},
    }


def moved(before: TrainedModel, after: TrainedModel) -> set[str]:
    """The parts of the network of which a tensor is another one."""
    return {
        name.rpartition(".")[0] for name, tensor in after.state.items() if not torch.equal(tensor, before.state[name])
    }


@pytest.fixture(scope="module")
def untrained(ranks: Pool, tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    """lr so small that no weight of fp32 moves, with all statistics held."""
    document = spec("features.*") | {"optimizer": {"name": "sgd", "lr": 1e-30}}
    found: TrainedModel = ranks.run(train, 2, str(tmp_path_factory.mktemp("untrained")), document)[0]
    return found


def test_frozen_layers_and_their_statistics_stay_bit_for_bit(
    ranks: Pool, tmp_path: Path, untrained: TrainedModel
) -> None:
    told = RecordingReporter()

    first, second = ranks.run(train, 2, str(tmp_path), spec("features.0", "features.1.*", "features.1"), None, told)

    assert all(torch.equal(tensor, second.state[name]) for name, tensor in first.state.items())
    parts = {name.rpartition(".")[0] for name in first.state}
    assert moved(untrained, first) == parts - {"features.0", "features.1"}
    assert told.events == []
    metrics = (tmp_path / "metrics.jsonl").read_text()
    assert "z_norm_layers/features.1/" not in metrics
    assert "z_norm_layers/features.5/" in metrics or "z_norm_layers/features.4/" in metrics


def test_two_workers_with_frozen_layers_equal_one(ranks: Pool, tmp_path: Path) -> None:
    freeze = ["features.0", {"match": "features.1", "unfreeze_at": {"epochs": 1}}]

    one = ranks.run(train, 1, str(tmp_path / "1"), spec(*freeze, workers=1, precision="64-true"))[0]
    two = ranks.run(train, 2, str(tmp_path / "2"), spec(*freeze, precision="64-true"))[0]

    torch.testing.assert_close(one.state, two.state, rtol=1e-9, atol=1e-9)  # fp64


@pytest.mark.parametrize(
    ("unfreeze_at", "steps", "is_trained"),
    [({"steps": 3}, 3, False), ({"steps": 3}, 4, True), ({"epochs": 1}, 6, False), ({"epochs": 1}, 7, True)],
)
def test_unfrozen_at_its_moment(
    unfreeze_at: dict[str, int],
    steps: int,
    is_trained: bool,
    ranks: Pool,
    tmp_path: Path,
    untrained: TrainedModel,
) -> None:
    """6 steps an epoch."""
    document = spec({"match": "features", "unfreeze_at": unfreeze_at}, epochs=None, steps=steps)

    first, second = ranks.run(train, 2, str(tmp_path), document)

    assert all(torch.equal(tensor, second.state[name]) for name, tensor in first.state.items())
    assert ("features.1" in moved(untrained, first)) == is_trained
    assert ("features.0" in moved(untrained, first)) == is_trained


@pytest.mark.parametrize(("stop_at", "accumulate"), each_value([2, 5, 6, 8], [1, 2]))
def test_stopped_before_and_after_the_moment(stop_at: int, accumulate: int, ranks: Pool, tmp_path: Path) -> None:
    freeze = [{"match": "features.0", "unfreeze_at": {"epochs": 1}}, {"match": "features", "unfreeze_at": {"steps": 4}}]
    document = spec(*freeze, accumulate=accumulate, epochs=2 * accumulate)
    whole = ranks.run(train, 2, str(tmp_path / "whole"), document)[0]

    ranks.run(train, 2, str(tmp_path / "1"), document, None, RecordingReporter(stop_at=stop_at))
    newest = max((tmp_path / "1" / "checkpoints").iterdir())
    resumed = ranks.run(train, 2, str(tmp_path / "2"), document, str(newest))[0]

    assert moved(whole, resumed) == set()
    assert resumed.metrics == whole.metrics


def test_modules_of_the_user_are_frozen_too(ranks: Pool, tmp_path: Path) -> None:
    document = job("Hooks", workers=2)
    fresh = ranks.run(train, 2, str(tmp_path / "fresh"), job("Hooks", workers=2, train={"steps": 1}))[0]
    document["model"]["freeze"] = ["net.0", "net.1"]

    frozen = ranks.run(train, 2, str(tmp_path / "1"), document | {"train": {"epochs": 2}})[0]
    document["model"]["freeze"] = [{"match": "net.?", "unfreeze_at": {"steps": 2}}, "net.4"]

    assert torch.equal(frozen.state["net.1.running_mean"], torch.zeros(8))
    assert not torch.equal(fresh.state["net.1.running_mean"], torch.zeros(8))
    with pytest.raises(ValueError, match=r"^model.freeze must leave something to train in the first step"):
        ranks.run(train, 2, str(tmp_path / "2"), document)


@pytest.mark.parametrize(
    ("name", "freeze", "says"),
    [
        ("Unfreezes", ["net.0"], "'net.0' freezes net.0.weight, but a hook or callback of yours unfreezes it"),
        (
            "FiltersFrozen",
            [{"match": "net.0", "unfreeze_at": {"steps": 2}}],
            "'net.0' can't be unfrozen later, because FiltersFrozen.configure_optimizers gives net.0.weight to no",
        ),
    ],
)
def test_what_a_module_contradicts_is_refused_by_name(
    name: str, freeze: list[Any], says: str, ranks: Pool, tmp_path: Path
) -> None:
    document = job(name)
    document["model"]["freeze"] = freeze

    with pytest.raises(ValueError, match=rf"^model.freeze: {re.escape(says)}"):
        ranks.run(train, 1, str(tmp_path), document)


def test_glob_that_names_nothing_tells_what_comes_near() -> None:
    network = nn.ModuleDict({"backbone": nn.Linear(2, 2), "head": nn.Linear(2, 2)})

    with pytest.raises(ValueError, match=r"^model.freeze: 'backbon.\*' must match .*Near it are? backbone"):
        match(network, ["backbon.*"], "model.freeze")
    with pytest.raises(ValueError, match=r"Its parts are backbone, head\.$"):
        match(network, ["xyz"], "model.freeze")


def test_first_glob_that_covers_a_parameter_counts() -> None:
    network = nn.ModuleDict({"a": nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), "b": nn.Linear(2, 2)})

    found = match(network, ["a.1.bias", "a", "*.weight"], "model.freeze")

    numbers = {name: found.parameters.get(parameter) for name, parameter in network.named_parameters()}
    assert numbers == {"a.0.weight": 1, "a.0.bias": 1, "a.1.weight": 1, "a.1.bias": 0, "b.weight": 2, "b.bias": None}
    assert set(found.modules) == {network["a"], *network["a"]}


def test_plan_counts_frozen_parameters() -> None:
    document = spec("features.0", {"match": "features.*", "unfreeze_at": {"epochs": 1}})

    found = inspect(read_spec(document)).parameters

    assert found is not None
    assert [(part.match, part.unfreeze_at) for part in found.frozen] == [
        ("features.0", None),
        ("features.*", "1 epoch"),
    ]
    assert found.frozen[0].parameters == 36  # a 3x3 convolution from 1 to 4 channels
    assert found.trained + sum(part.parameters for part in found.frozen) == found.total


def test_layers_that_are_all_held_take_no_statistics_from_one_worker() -> None:
    document = spec("features") | {"norm": {"kind": "batch"}}

    held, trained = (inspect(read_spec(one)).guarantees for one in (document, spec() | {"norm": {"kind": "batch"}}))

    assert held is not None
    assert trained is not None
    assert (held.equals_one_device.holds, trained.equals_one_device.holds) == ("yes", "no")


def test_a_moment_has_one_unit() -> None:
    with pytest.raises(SpecError, match="exactly one of epochs and steps"):
        read_spec(spec({"match": "*", "unfreeze_at": {"epochs": 1, "steps": 1}}))
