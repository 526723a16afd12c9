"""An average of the weights has statistics of its own, and nothing else changes by it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from syncnorm.trainer.contract.spec import AverageSpec
from syncnorm.trainer.contract.spec_reader import read_spec
from syncnorm.trainer.data import build_data
from syncnorm.trainer.data.loader import train_loader
from syncnorm.trainer.errors import SpecError
from syncnorm.trainer.training import checkpoints
from syncnorm.trainer.training.averaging import averaged_weights
from syncnorm.trainer.training.averaging.horizon import horizon_findings
from syncnorm.trainer.training.averaging.weight_average import WeightAverage
from syncnorm.trainer.training.task_module import network_of
from tests.helpers.combinations import each_value
from tests.helpers.norm.pool import Pool
from tests.helpers.trainer.few_digits import BATCH, TRAINING, few_digits, train
from tests.helpers.trainer.own_module_jobs import job
from tests.helpers.trainer.ranks import RecordingReporter, TrainedModel, build, launch_of

EMA = {"kind": "ema", "decay": 0.8}
SWA = {"kind": "swa", "from": 0.5}
KEPT = ("val/loss", "val/accuracy")


def spec(average: dict[str, Any] | None, workers: int = 2, **changes: Any) -> dict[str, Any]:
    """6 batches an epoch, the last one smaller; augmentation and dropout draw random numbers."""
    train_changes = changes.pop("train", {})
    return {
        "name": "average",
        "model": {"name": "cnn", "init_args": {"channels": [4, 8], "dropout": 0.2}},
        "data": {"name": "digits", "batch_size": BATCH // workers, "init_args": {"augment": True}},
        "norm": {"kind": "sync_batch"},
        "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4},
        "schedule": {"name": "cosine", "warmup_steps": 3},
        "train": {"epochs": 3, "checkpoint_every": {"steps": 2}, "keep_checkpoints": 20, "average": average}
        | train_changes,
        "resources": {"workers": workers},
    } | changes


def saved(root: Path, step: int | None = None) -> dict[str, Any]:
    """The last checkpoint, or that of a step."""
    paths = sorted((root / "checkpoints").iterdir())
    path = paths[-1] if step is None else root / "checkpoints" / checkpoints.name_of(step)
    return checkpoints.load(path)


class Trace(Callback):
    """Notes the weights after each optimizer step, and the numbers that are drawn next."""

    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = []
        self.drawn: list[Tensor] = []

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        if trainer.global_step > len(self.weights):
            named = network_of(module).named_parameters()
            self.weights.append({name: parameter.detach().clone() for name, parameter in named})

    def on_train_epoch_end(self, *_: Any) -> None:
        self.drawn.append(torch.get_rng_state())


def train_traced(
    rank: int, world_size: int, root: str, document: dict[str, Any], resume_from: str | None = None
) -> tuple[TrainedModel, list[dict[str, Tensor]], list[Tensor]]:
    trace = Trace()

    def prepare(trainer: Trainer, *_: Any) -> None:
        trainer.callbacks.append(trace)  # type: ignore[attr-defined]

    return train(rank, world_size, root, document, resume_from, prepare=prepare), trace.weights, trace.drawn


def closed_form(average: dict[str, Any], weights: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    if average["kind"] == "swa":
        late = weights[math.ceil(average["from"] * len(weights)) :]
        return {name: torch.stack([one[name] for one in late]).mean(0) for name in weights[0]}
    decay, last = average["decay"], len(weights) - 1
    share = [decay**last, *((1 - decay) * decay ** (last - step) for step in range(1, last + 1))]
    return {name: sum(s * one[name] for s, one in zip(share, weights, strict=True)) for name in weights[0]}  # type: ignore[misc]


@pytest.mark.parametrize(("average", "accumulate"), each_value([EMA, SWA, {"kind": "ema", "decay": 0.999}], [1, 2]))
def test_average_equals_the_closed_form(average: dict[str, Any], accumulate: int, ranks: Pool, tmp_path: Path) -> None:
    document = spec(average, train={"precision": "64-true", "accumulate": accumulate})

    (trained, weights, _), _ = ranks.run(train_traced, 2, str(tmp_path), document)

    state = saved(tmp_path)
    for name, wanted in closed_form(average, weights).items():
        torch.testing.assert_close(state["state_dict"][f"network.{name}"], wanted, rtol=0, atol=1e-12)
        torch.testing.assert_close(trained.state[name], wanted, rtol=0, atol=1e-12)
        assert torch.equal(state["current_model_state"][f"network.{name}"], weights[-1][name])


def test_statistics_are_those_of_a_pass_over_the_training_samples(ranks: Pool, tmp_path: Path) -> None:
    """In one process, with torch's own layers: mean and variance of all values that a layer got."""
    document = spec(EMA, train={"precision": "64-true"})

    first, second = ranks.run(train, 2, str(tmp_path), document)

    assert all(torch.equal(tensor, second.state[name]) for name, tensor in first.state.items())
    network = network_of(build(0, 1, launch_of(document | {"norm": {"kind": "batch"}})).module).double()
    network.load_state_dict(first.state)
    read = read_spec(document)
    seen: dict[str, list[Tensor]] = {}
    for path, layer in network.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.register_forward_pre_hook(lambda _, args, path=path: seen.setdefault(path, []).append(args[0]))
        layer.training = isinstance(layer, nn.modules.batchnorm._BatchNorm)
    with few_digits():
        data = build_data(read.data, read.seed)
    for batch in train_loader(data, global_batch=BATCH, seed=read.seed):
        network(batch.x.double())
    assert seen
    for path, inputs in seen.items():
        values = torch.cat([x.transpose(0, 1).flatten(1) for x in inputs], 1)
        torch.testing.assert_close(first.state[f"{path}.running_mean"], values.mean(1), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(first.state[f"{path}.running_var"], values.var(1), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("average", [EMA, SWA])
def test_two_workers_equal_one_device(average: dict[str, Any], ranks: Pool, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"train": {"precision": "64-true"}}
    changes["model"] = {"name": "cnn", "init_args": {"channels": [4, 8]}}

    one = ranks.run(train, 1, str(tmp_path / "1"), spec(average, 1, **changes))[0]
    two = ranks.run(train, 2, str(tmp_path / "2"), spec(average, 2, **changes))[0]

    torch.testing.assert_close(one.state, two.state, rtol=1e-9, atol=1e-9)
    assert one.metrics == pytest.approx(two.metrics, rel=1e-9)


def test_training_is_the_same_with_and_without_an_average(ranks: Pool, tmp_path: Path) -> None:
    (plain, weights, drawn), _ = ranks.run(train_traced, 2, str(tmp_path / "plain"), spec(None))
    (averaged, with_average, drawn_too), _ = ranks.run(train_traced, 2, str(tmp_path / "ema"), spec(EMA))

    assert all(torch.equal(a[name], b[name]) for a, b in zip(weights, with_average, strict=True) for name in a)
    assert all(torch.equal(a, b) for a, b in zip(drawn, drawn_too, strict=True))
    training = {name: value for name, value in plain.metrics.items() if name not in KEPT}
    assert {name: value for name, value in averaged.metrics.items() if name not in KEPT} == training
    state = saved(tmp_path / "ema")["current_model_state"]
    assert all(torch.equal(tensor, state[f"network.{name}"]) for name, tensor in plain.state.items())


def test_validation_judges_the_average_with_its_own_statistics(ranks: Pool, tmp_path: Path) -> None:
    document = spec(EMA)
    trained = ranks.run(train, 2, str(tmp_path), document)[0]
    network = network_of(build(0, 1, launch_of(document)).module).eval()
    with few_digits():
        data = build_data(read_spec(document).data, 0)
    samples: Any = data.val
    x, y = (
        torch.stack([samples[i][0] for i in range(len(samples))]),
        torch.tensor([int(samples[i][1]) for i in range(len(samples))]),
    )

    network.load_state_dict({n.removeprefix("network."): t for n, t in saved(tmp_path)["state_dict"].items()})

    with torch.no_grad():
        loss = nn.functional.cross_entropy(network(x), y)
    assert trained.metrics["val/loss"] == pytest.approx(float(loss), rel=1e-5)  # fp32
    assert saved(tmp_path)["averaging_state"]["statistics"]["samples"] == TRAINING


def test_compiled_network_gets_the_same_statistics(ranks: Pool, tmp_path: Path) -> None:
    document = spec(EMA, model={"name": "cnn", "init_args": {"channels": [4, 8]}}, train={"steps": 4, "epochs": None})
    compiled = document | {"train": document["train"] | {"compile": True}}

    eager = ranks.run(train, 2, str(tmp_path / "1"), document)[0]
    found = ranks.run(train, 2, str(tmp_path / "2"), compiled)[0]

    torch.testing.assert_close(found.state, eager.state, rtol=1e-4, atol=1e-5)  # fp32, other kernels


def test_checkpoint_within_an_epoch_says_that_its_statistics_are_those_of_training(ranks: Pool, tmp_path: Path) -> None:
    ranks.run(train, 2, str(tmp_path), spec(EMA))

    within, end = saved(tmp_path, 4), saved(tmp_path, 6)

    assert within["averaging_state"]["statistics"] is None
    assert end["averaging_state"]["statistics"] == {"samples": TRAINING, "estimator": "pooled"}
    name = "network.features.1.running_mean"
    assert torch.equal(within["state_dict"][name], within["current_model_state"][name])
    assert not torch.equal(end["state_dict"][name], end["current_model_state"][name])


def test_best_checkpoint_and_early_stopping_judge_the_average(ranks: Pool, tmp_path: Path) -> None:
    """Its loss still falls when that of the weights of training, with a rate far too high, does not."""
    stopping = {"monitor": "val/loss", "patience": 1}
    changes = {"epochs": 8, "early_stopping": stopping, "keep_best": {"monitor": "val/loss"}}
    document = spec(EMA, train=changes)

    trained = ranks.run(train, 2, str(tmp_path), document)[0]

    points = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = {point["step"]: point["value"] for point in points if point["key"] == "val/loss"}
    best = saved(tmp_path)["callbacks"]["CheckpointWriter"]["best"]
    assert best[1] == min(losses, key=lambda step: losses[step])
    assert best[0] == min(losses.values())
    assert trained.metrics["val/loss"] == losses[max(losses)]


def test_average_begins_at_its_share_of_training(ranks: Pool, tmp_path: Path) -> None:
    ranks.run(train, 2, str(tmp_path), spec(SWA))

    assert "averaging_state" not in saved(tmp_path, 8)
    assert saved(tmp_path, 10)["averaging_state"]["updates"] == 1  # of 18 steps, from the tenth on
    assert saved(tmp_path)["averaging_state"]["updates"] == 9


@pytest.mark.parametrize(
    ("average", "changes"),
    each_value(
        [EMA, SWA],
        [
            {},
            {"train": {"accumulate": 2, "epochs": 6}},
            {"train": {"epochs": None, "steps": 15}},
            {"norm": {"kind": "batch"}},
            {"norm": {"kind": "group"}},
            {"train": {"precision": "bf16-mixed"}},
            {"freeze": [{"match": "features.0", "unfreeze_at": {"epochs": 1}}, "features.1"]},
        ],
    ),
)
def test_stopped_anywhere(average: dict[str, Any], changes: dict[str, Any], ranks: Pool, tmp_path: Path) -> None:
    stop_at = 6 if average is EMA else 11
    changes = dict(changes)
    freeze = changes.pop("freeze", [])
    document = spec(average, **changes)
    document["model"]["freeze"] = freeze
    whole = ranks.run(train, 2, str(tmp_path / "whole"), document)[0]

    ranks.run(train, 2, str(tmp_path / "1"), document, None, RecordingReporter(stop_at=stop_at))
    found = checkpoints.newest([tmp_path / "1" / "checkpoints"])
    assert found is not None
    resumed = ranks.run(train, 2, str(tmp_path / "2"), document, str(found.path))[0]

    assert_same(whole, resumed, tmp_path / "whole", tmp_path / "2")


def assert_same(whole: TrainedModel, resumed: TrainedModel, of_whole: Path, of_resumed: Path) -> None:
    assert [name for name, tensor in whole.state.items() if not torch.equal(tensor, resumed.state[name])] == []
    assert resumed.metrics == whole.metrics
    expected, found = saved(of_whole), saved(of_resumed)
    for part in ("state_dict", "current_model_state"):
        assert [name for name, t in expected[part].items() if not torch.equal(t, found[part][name])] == []
    assert found["averaging_state"] == expected["averaging_state"]


def forget(part: str) -> Callable[..., Any]:
    """A planted bug of resuming."""
    adopt = WeightAverage.adopt

    def changed(self: WeightAverage, network: nn.Module, *, updates: int, has_statistics: bool) -> None:
        adopt(self, network, updates=0 if part == "updates" else updates, has_statistics=has_statistics)
        if part == "weights":
            self._weights = {name: torch.zeros_like(tensor) for name, tensor in self._weights.items()}

    return changed


def train_with_bug(
    rank: int, world_size: int, root: str, document: dict[str, Any], start: str, part: str
) -> TrainedModel:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(averaged_weights.WeightAverage, "adopt", forget(part))
        return train(rank, world_size, root, document, start)


@pytest.mark.parametrize("part", ["weights", "updates"])
def test_these_tests_notice_what_is_forgotten(part: str, ranks: Pool, tmp_path: Path) -> None:
    document = spec(SWA)
    whole = ranks.run(train, 2, str(tmp_path / "whole"), document)[0]
    ranks.run(train, 2, str(tmp_path / "1"), document, None, RecordingReporter(stop_at=13))
    found = checkpoints.newest([tmp_path / "1" / "checkpoints"])
    assert found is not None

    resumed = ranks.run(train_with_bug, 2, str(tmp_path / "2"), document, str(found.path), part)[0]

    with pytest.raises(AssertionError):
        assert_same(whole, resumed, tmp_path / "whole", tmp_path / "2")


# Modules of the user


@pytest.mark.parametrize("name", ["Hooks", "TwoOptimizers", "BuiltInSetup"])
def test_modules_of_the_user_are_averaged_too(name: str, ranks: Pool, tmp_path: Path) -> None:
    document = job(name, workers=2, norm={"kind": "sync_batch"}, train={"epochs": 3, "average": EMA})
    document["data"]["init_args"] = {"shuffle": True}
    whole, other = ranks.run(train, 2, str(tmp_path / "whole"), document)

    ranks.run(train, 2, str(tmp_path / "1"), document, None, RecordingReporter(stop_at=4))
    found = checkpoints.newest([tmp_path / "1" / "checkpoints"])
    assert found is not None
    resumed = ranks.run(train, 2, str(tmp_path / "2"), document, str(found.path))[0]

    assert all(torch.equal(tensor, other.state[n]) for n, tensor in whole.state.items())
    assert_same(whole, resumed, tmp_path / "whole", tmp_path / "2")
    assert saved(tmp_path / "whole")["averaging_state"]["statistics"]["samples"] == 44


def test_training_of_a_module_of_the_user_is_the_same_with_an_average(ranks: Pool, tmp_path: Path) -> None:
    """On one worker, whose sampler draws from the generators of training."""
    document = job("Hooks", train={"epochs": 3})
    document["data"]["init_args"] = {"shuffle": True}
    (_, plain, drawn), *_ = ranks.run(train_traced, 1, str(tmp_path / "1"), document)
    document["train"]["average"] = EMA

    (_, averaged, drawn_too), *_ = ranks.run(train_traced, 1, str(tmp_path / "2"), document)

    assert all(torch.equal(a[name], b[name]) for a, b in zip(plain, averaged, strict=True) for name in a)
    assert all(torch.equal(a, b) for a, b in zip(drawn, drawn_too, strict=True))


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("Averages", "Points", "must be left out, because Averages brings StochasticWeightAveraging"),
        ("Hooks", "Streams", "needs statistics of normalization .* but your DataLoader can't be read a second time"),
        ("TakesNumbers", "Points", "needs statistics of normalization .* but TakesNumbers.forward takes"),
    ],
)
def test_what_can_not_be_averaged_is_refused_by_name(
    name: str, data: str, says: str, ranks: Pool, tmp_path: Path
) -> None:
    document = job(name, data=data, train={"epochs": 1, "average": EMA})

    with pytest.raises(ValueError, match=rf"^train.average {says}"):
        ranks.run(train, 1, str(tmp_path), document)


def test_without_statistics_a_stream_can_be_averaged(ranks: Pool, tmp_path: Path) -> None:
    document = job("Hooks", data="Streams", norm={"kind": "group"}, train={"epochs": 1, "average": EMA})

    ranks.run(train, 1, str(tmp_path), document)

    assert saved(tmp_path)["averaging_state"]["statistics"] == {}


# The spec


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"train": {"average": {"kind": "ema", "from": 0.5}}}, "from is for swa"),
        ({"train": {"average": {"kind": "swa", "decay": 0.5}}}, "decay is for ema"),
        ({"export": {"statistics": "running"}}, "running statistics are of other weights than train.average gives"),
        ({"statistics": {"population": "none"}}, "train.average needs statistics of its own"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(SpecError, match=says):
        read_spec(spec(EMA, **changes))


def test_a_spec_is_read_as_it_was_written() -> None:
    for average in ({"kind": "swa"}, {"kind": "ema"}, SWA):
        once = read_spec(spec(average)).model_dump(mode="json")

        assert read_spec(json.loads(json.dumps(once))).model_dump(mode="json") == once
    assert read_spec(spec({"kind": "swa"})).model_dump(mode="json")["train"]["average"]["from"] == 0.75


def test_plan_warns_of_an_average_of_the_start() -> None:
    ema = AverageSpec(kind="ema")

    (finding,) = horizon_findings(ema, 18)

    assert "looks back over about 1,000 steps, and training has 18: 98%" in finding.message
    assert "Use a decay of 0.5 or less" in finding.fix
    assert list(horizon_findings(ema, 10_000)) == []
    assert list(horizon_findings(AverageSpec(kind="swa"), 18)) == []
