"""What watches over training: non-finite gradients, early stopping."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch._dynamo.utils
import torch.distributed as dist
from torch import nn

from syncnorm.trainer.data import Data
from syncnorm.trainer.data.digits import Images, load_digits
from syncnorm.trainer.data.info import DataInfo
from syncnorm.trainer.errors import NonFiniteError
from syncnorm.trainer.training.task_module import network_of
from syncnorm.trainer.worker.fit import compile_in_place
from tests.helpers.norm.pool import Pool
from tests.helpers.trainer.ranks import RecordingReporter, train


def spec(**changes: Any) -> dict[str, Any]:
    return {
        "name": "watched",
        "model": {"name": "mlp", "init_args": {"hidden": [16]}},
        "data": {"name": "digits", "batch_size": 360},
        "norm": {"kind": "sync_batch"},
        "optimizer": {"name": "sgd", "lr": 0.1},
        "train": {"epochs": 40},
        "resources": {"workers": 2},
    } | changes


def points(root: Path, key: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (root / "metrics.jsonl").read_text().splitlines()]
    return [point for point in lines if point["key"] == key]


def train_on_bad_samples(rank: int, world_size: int, root: str, count: int) -> Any:
    """Train on digits of which `count` have a NaN pixel."""
    images, labels = load_digits()
    x = images[:, None].clone()
    x[torch.randperm(1000, generator=torch.Generator().manual_seed(0))[:count], 0, 0, 0] = float("nan")
    bad = Data(
        DataInfo("classification", 10, (1, 8, 8)), Images(x[:1400], labels[:1400]), Images(x[1400:], labels[1400:])
    )
    return train(rank, world_size, root, spec(train={"epochs": 6}), data=bad)


def test_a_bad_batch_changes_neither_weights_nor_statistics(ranks: Pool, tmp_path: Path) -> None:
    # One bad sample: 1 of the 2 steps of every epoch is left out, which soon is too much.
    with pytest.raises(NonFiniteError, match=r"gradients must be finite, but 4 of [78] steps"):
        ranks.run(train_on_bad_samples, 2, str(tmp_path), 1)

    skipped = [point["value"] for point in points(tmp_path, "train/non_finite_steps")]
    assert skipped == [1, 2, 3, 4]
    losses = [point["value"] for point in points(tmp_path, "val/loss")]
    assert len(losses) >= 2
    assert all(loss < 5 for loss in losses)  # NaN compares false: the model went on learning in between


def test_bad_batches_in_a_row_end_the_job_on_every_rank(ranks: Pool, tmp_path: Path) -> None:
    outcomes = ranks.outcomes(train_on_bad_samples, 2, str(tmp_path), 900)

    assert [type(error) for _, error, _ in outcomes] == [NonFiniteError, NonFiniteError]
    assert all("the last 3 in a row" in str(error) for _, error, _ in outcomes)


def test_early_stopping_ends_when_the_score_stays(ranks: Pool, tmp_path: Path) -> None:
    # lr so small that nothing is learned: accuracy gets no better by a tenth, so patience runs out after 1 + 2 epochs.
    stopping = {"monitor": "val/accuracy", "mode": "max", "patience": 2, "min_delta": 0.1}
    document = spec(train={"epochs": 40, "early_stopping": stopping}, optimizer={"name": "sgd", "lr": 1e-9})

    ranks.run(train, 2, str(tmp_path), document)

    assert len(points(tmp_path, "val/accuracy")) == 3


def test_the_best_checkpoint_stays(ranks: Pool, tmp_path: Path) -> None:
    # The highest loss, so that the first epoch is the best one.
    best = {"monitor": "val/loss", "mode": "max"}
    document = spec(train={"epochs": 5, "keep_checkpoints": 2, "keep_best": best})

    ranks.run(train, 2, str(tmp_path), document)

    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["step-0000000002", "step-0000000008", "step-0000000010"]  # two steps an epoch


def reported(rank: int, world_size: int, root: str, document: dict[str, Any]) -> list[dict[str, Any]]:
    """What is said of each checkpoint of a job."""
    train(rank, world_size, root, document, told=(told := RecordingReporter()))
    return told.checkpoints


def test_checkpoints_tell_their_metrics_and_the_best_so_far(ranks: Pool, tmp_path: Path) -> None:
    # Two steps an epoch: a checkpoint in the middle of an epoch measures nothing. The first epoch has the highest loss.
    best = {"monitor": "val/loss", "mode": "max"}
    document = spec(train={"epochs": 2, "checkpoint_every": {"steps": 1}, "keep_best": best})

    told = ranks.run(reported, 2, str(tmp_path), document)[0]

    losses = {point["step"]: point["value"] for point in points(tmp_path, "val/loss")}
    assert [(one["step"], one["best_step"]) for one in told] == [(1, None), (2, 2), (3, 2), (4, 2)]
    assert [one["metrics"].get("val/loss") for one in told] == [None, losses[2], None, losses[4]]


def test_early_stopping_on_an_unknown_score_says_which_there_are(ranks: Pool, tmp_path: Path) -> None:
    document = spec(train={"epochs": 2, "early_stopping": {"monitor": "val/acc"}})

    with pytest.raises(ValueError, match=r"train.early_stopping.monitor must be one of .*val/accuracy.*'val/acc'"):
        ranks.run(train, 2, str(tmp_path), document)


def test_share_of_exchanges_is_reported_where_there_are_any(ranks: Pool, tmp_path: Path) -> None:
    ranks.run(train, 2, str(tmp_path / "sync"), spec(train={"epochs": 2}))
    ranks.run(train, 2, str(tmp_path / "local"), spec(train={"epochs": 2}, norm={"kind": "batch"}))

    shares = [point["value"] for point in points(tmp_path / "sync", "norm/sync_share")]
    assert len(shares) == 2
    assert all(0 < share < 1 for share in shares)
    assert points(tmp_path / "local", "norm/sync_share") == []


def train_with_a_slow_rank(rank: int, world_size: int, root: str, slow: int) -> dict[str, float]:
    """What rank 0 tells last."""

    def prepare(_trainer: Any, module: Any, _norms: Any) -> None:
        if rank == slow:
            network_of(module).register_forward_pre_hook(lambda *_: time.sleep(0.3))

    train(rank, world_size, root, spec(train={"epochs": 2}), told=(told := RecordingReporter()), prepare=prepare)
    return told.metrics


@pytest.mark.parametrize("slow", [0, 1])
def test_rank_that_the_others_wait_for_is_named_with_their_share(ranks: Pool, tmp_path: Path, slow: int) -> None:
    told = ranks.run(train_with_a_slow_rank, 2, str(tmp_path), slow)[0]

    assert told["norm/slowest_rank"] == slow
    assert 0.1 < told["norm/waiting_share"] < 1
    assert [point["value"] for point in points(tmp_path, "norm/slowest_rank")] == [slow, slow]


def test_compiled_training_learns_what_eager_training_does(ranks: Pool, tmp_path: Path) -> None:
    eager = ranks.run(train, 2, str(tmp_path / "eager"), spec(train={"steps": 4}))[0]
    compiled = ranks.run(train, 2, str(tmp_path / "compiled"), spec(train={"steps": 4, "compile": True}))[0]

    assert list(compiled.state) == list(eager.state)
    for name, tensor in eager.state.items():
        torch.testing.assert_close(compiled.state[name], tensor, rtol=1e-4, atol=1e-5)  # fp32, other kernels


def test_an_epoch_cut_short_is_validated(ranks: Pool, tmp_path: Path) -> None:
    ranks.run(train, 2, str(tmp_path), spec(train={"steps": 5}))  # two steps an epoch: the third epoch is cut short

    for key in ("train/loss", "val/loss"):
        assert [point["step"] for point in points(tmp_path, key)] == [2, 4, 5]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own imports, at the first compilation
def test_a_sequential_is_really_compiled() -> None:
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    x = torch.randn(3, 4)
    expected = network(x)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()

    compile_in_place(network)
    found = network(x)

    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)  # fp32
    assert list(network.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]


def broadcasts(rank: int, world_size: int, root: str, steps: int) -> int:
    """How often ranks are made to wait for something of another's while they train `steps` steps."""
    with mock.patch.object(dist, "broadcast", wraps=dist.broadcast) as spy:
        train(rank, world_size, root, spec(data={"name": "digits", "batch_size": 32}, train={"steps": steps}))
    return spy.call_count


def test_no_step_waits_for_a_broadcast(ranks: Pool, tmp_path: Path) -> None:
    few, many = (ranks.run(broadcasts, 2, str(tmp_path / str(steps)), steps) for steps in (2, 12))

    assert few == many
