"""train.accumulate_statistics: exact. One worker with k micro-batches trains what k workers train."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from syncnorm.trainer.contract.plan import batch_sizes, findings
from syncnorm.trainer.contract.spec_reader import read_spec
from syncnorm.trainer.errors import SpecError
from syncnorm.trainer.training import checkpoints
from syncnorm.trainer.worker.findings.guarantees import equals_one_device
from syncnorm.trainer.worker.module_and_data import assemble
from tests.helpers.norm.pool import Pool
from tests.helpers.trainer.own_module_jobs import job
from tests.helpers.trainer.ranks import RecordingReporter, TrainedModel, train


def spec(workers: int, accumulate: int = 1, **train_changes: Any) -> dict[str, Any]:
    """A job whose step has 240 samples. 1,438 training samples: the last step of an epoch has fewer."""
    steps = {"accumulate": accumulate, "accumulate_statistics": "exact"} if accumulate > 1 else {}
    return {
        "name": "joined",
        "model": {"name": "resnet", "init_args": {"depth": 8, "width": 4}},
        "data": {"name": "digits", "batch_size": 240 // (workers * accumulate)},
        "norm": {"kind": "sync_batch"},
        "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
        "train": {"epochs": 1, "precision": "64-true", **steps, **train_changes},
        "resources": {"workers": workers},
    }


def assert_same(found: TrainedModel, expected: TrainedModel) -> None:
    # fp64: six steps of momentum SGD amplify rounding of 1e-16 by some orders, nothing more.
    for name, tensor in expected.state.items():
        torch.testing.assert_close(found.state[name], tensor, rtol=1e-9, atol=1e-9)
    assert found.metrics["train/loss"] == pytest.approx(expected.metrics["train/loss"], rel=1e-6)  # summed in fp32
    assert found.metrics["train/accuracy"] == expected.metrics["train/accuracy"]
    assert found.metrics["val/accuracy"] == expected.metrics["val/accuracy"]


@pytest.fixture(scope="module")
def four_workers(ranks: Pool, tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    found: TrainedModel = ranks.run(train, 4, str(tmp_path_factory.mktemp("four")), spec(4))[0]
    return found


@pytest.mark.parametrize(
    ("workers", "accumulate", "kind"), [(1, 4, "sync_batch"), (1, 4, "batch"), (2, 3, "sync_batch")]
)
def test_micro_batches_train_what_workers_train(
    workers: int, accumulate: int, kind: str, four_workers: TrainedModel, ranks: Pool, tmp_path: Path
) -> None:
    document = spec(workers, accumulate) | {"norm": {"kind": kind}, "diagnostics": ["equivalence"]}

    found = ranks.run(train, workers, str(tmp_path), document)[0]

    assert_same(found, four_workers)
    proved = json.loads((tmp_path / "artifacts/diagnostics/equivalence.json").read_text())
    assert proved
    assert all(record["equal"] for record in proved)


def test_micro_batches_by_themselves_do_not(four_workers: TrainedModel, ranks: Pool, tmp_path: Path) -> None:
    document = spec(1, 4, accumulate_statistics="micro_batch")

    found = ranks.run(train, 1, str(tmp_path), document)[0]

    assert not torch.allclose(found.state["conv1.weight"], four_workers.state["conv1.weight"], rtol=1e-3)


def test_a_job_that_was_stopped_ends_as_one_that_was_not(ranks: Pool, tmp_path: Path) -> None:
    document = spec(1, 4)
    whole = ranks.run(train, 1, str(tmp_path / "whole"), document)[0]

    stopped = ranks.run(train, 1, str(tmp_path / "one"), document, None, RecordingReporter(stop_at=3))[0]
    newest = checkpoints.newest([tmp_path / "one" / "checkpoints"])
    assert newest is not None
    resumed = ranks.run(train, 1, str(tmp_path / "two"), document, str(newest.path))[0]

    assert (stopped.stopped_at or 6) < 6
    assert all(torch.equal(resumed.state[name], value) for name, value in whole.state.items())
    assert resumed.metrics["train/loss"] == whole.metrics["train/loss"]


class _Dying(RecordingReporter):
    """Kills its attempt in the fifth step."""

    def progress(self, *, step: int, **_: object) -> None:
        if step == 5:
            raise MemoryError("killed")


def test_a_job_that_died_ends_as_one_that_did_not(ranks: Pool, tmp_path: Path) -> None:
    document = spec(1, 4, checkpoint_every={"steps": 2})
    whole = ranks.run(train, 1, str(tmp_path / "whole"), document)[0]

    with pytest.raises(MemoryError, match="killed"):
        ranks.run(train, 1, str(tmp_path / "one"), document, None, _Dying())
    newest = checkpoints.newest([tmp_path / "one" / "checkpoints"])
    assert newest is not None
    resumed = ranks.run(train, 1, str(tmp_path / "two"), document, str(newest.path))[0]

    assert newest.step in (2, 4)  # the last one is copied alongside the steps that follow
    assert all(torch.equal(resumed.state[name], value) for name, value in whole.state.items())


def test_a_step_is_cut_into_micro_batches_of_at_most_batch_size() -> None:
    assembly = assemble(read_spec(spec(1, 4)), 0, 1)
    assert assembly.task_data is not None
    batches = list(assembly.task_data.loaders.train)

    sizes = [[len(part.y) for part in batch.micro_batches()] for batch in batches]
    weights = [sum(part.weight for part in batch.micro_batches()) for batch in batches]

    assert assembly.steps == len(batches) == 6
    assert sizes == [[60] * 4] * 5 + [[60, 60, 59, 59]]
    assert weights == pytest.approx([1.0] * 6)
    assert next(len(batch.y) for batch in assembly.task_data.loaders.val) == 60


def test_the_plan_counts_all_micro_batches_together() -> None:
    exact, by_themselves = read_spec(spec(2, 3)), read_spec(spec(2, 3, accumulate_statistics="micro_batch"))

    assert batch_sizes(exact, "sync_batch").model_dump() == {"per_worker": 40, "norm_group": 240, "global_": 240}
    assert batch_sizes(by_themselves, "sync_batch").model_dump() == {"per_worker": 40, "norm_group": 80, "global_": 80}
    assert "accumulation_splits_statistics" not in {one.code for one in findings(exact, "sync_batch")}
    (said,) = [one for one in findings(by_themselves, "sync_batch") if one.path == "train.accumulate"]
    assert said.fix.startswith("Set train.accumulate_statistics: exact")


@pytest.mark.parametrize(
    ("workers", "how", "holds", "says"),
    [
        (1, "exact", "yes", "its micro-batches are normalized as one batch"),
        (1, "micro_batch", "partly", "each micro-batch of a step takes its statistics from its own samples"),
        (2, "exact", "yes", "statistics are those of all workers"),
        (2, "micro_batch", "partly", "each micro-batch of a step takes its statistics from its own samples"),
    ],
)
def test_the_guarantee_says_whether_a_step_is_that_of_one_batch(workers: int, how: str, holds: str, says: str) -> None:
    assembly = assemble(document := read_spec(spec(workers, 3, accumulate_statistics=how)), 0, workers)
    assert assembly.task_data is not None

    promise = equals_one_device(assembly.module, assembly.task_data.loaders.train, document)

    assert promise.holds == holds
    assert says in promise.why


def test_a_compiled_network_is_refused() -> None:
    with pytest.raises(SpecError, match="which a compiled one can't; leave compile out"):
        read_spec(spec(1, 4, compile=True))


def own(name: str, batch_size: int, accumulate: int = 1, **parts: Any) -> dict[str, Any]:
    joined = {"accumulate": accumulate, "accumulate_statistics": "exact"} if accumulate > 1 else {}
    document = job(name, data="Dicts", train={"epochs": 2, "precision": "64-true", **joined}, **parts)
    document["data"] |= {"batch_size": batch_size}
    return document


@pytest.mark.parametrize("workers", [1, 2])
def test_micro_batches_of_a_users_module_are_one_batch(workers: int, ranks: Pool, tmp_path: Path) -> None:
    kind = {"norm": {"kind": "sync_batch"}, "workers": workers}
    one = ranks.run(train, workers, str(tmp_path / "one"), own("NoDropout", 12, **kind))[0]
    joined = ranks.run(train, workers, str(tmp_path / "joined"), own("NoDropout", 4, 3, **kind))[0]

    for name, tensor in one.state.items():
        torch.testing.assert_close(joined.state[name], tensor, rtol=1e-9, atol=1e-9)
    assert joined.metrics["train/loss"] == pytest.approx(one.metrics["train/loss"], rel=1e-6)


@pytest.mark.parametrize(
    ("name", "data", "match"),
    [
        ("TwoOptimizers", "Points", "train.accumulate must be left out, because TwoOptimizers sets automatic_optim"),
        ("Hooks", "Streams", "exact needs batches that the trainer cuts, .* a DataLoader makes its batches itself"),
        ("Hooks", "WithWeights", r"must be the samples of all of them, but Hooks got lengths \[3, \d+\]"),
        ("Drops", "Points", "Drops.training_step must return a loss for every micro-batch"),
    ],
)
def test_what_can_not_be_had_is_refused(name: str, data: str, match: str, ranks: Pool, tmp_path: Path) -> None:
    document = job(name, data=data, train={"epochs": 1, "accumulate": 2, "accumulate_statistics": "exact"})

    with pytest.raises(ValueError, match=match):
        ranks.run(train, 1, str(tmp_path), document)


def test_batches_of_a_job_without_it_are_one_piece() -> None:
    assembly = assemble(read_spec(spec(1)), 0, 1)
    assert assembly.task_data is not None

    assert len(next(iter(assembly.task_data.loaders.train)).micro_batches()) == 1
