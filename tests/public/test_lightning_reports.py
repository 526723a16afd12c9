"""Reports about Lightning's trainer: averaged weights, resuming, names of metrics, logging."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from syncnorm.trainer.contract.spec_reader import read_spec
from syncnorm.trainer.data import build_data
from syncnorm.trainer.data.loader import train_loader
from syncnorm.trainer.reporting.metric_spool import Spool
from syncnorm.trainer.reporting.run_logger.lightning_logger import RunLogger
from syncnorm.trainer.training import checkpoints
from syncnorm.trainer.training.task_module import network_of
from tests.helpers.norm.pool import Pool
from tests.helpers.trainer.own_module_jobs import job
from tests.helpers.trainer.ranks import RecordingReporter, build, launch_of, train

MODULES = "tests.helpers.trainer.reported_modules"


def reported(name: str, *, workers: int = 2, **changes: Any) -> dict[str, Any]:
    document = job("Hooks", workers=workers, **changes)
    document["model"]["class_path"] = f"{MODULES}.{name}"
    return document


def averaged() -> dict[str, Any]:
    return {
        "name": "swa",
        "model": {"name": "cnn", "init_args": {"channels": [4, 8]}},
        "data": {"name": "digits", "batch_size": 128},
        "norm": {"kind": "sync_batch"},
        "optimizer": {"name": "sgd", "lr": 0.1},
        "train": {"epochs": 2, "precision": "64-true", "average": {"kind": "swa", "from": 0.5}},
        "resources": {"workers": 2},
    }


def network_with(state: dict[str, Tensor], document: dict[str, Any]) -> nn.Module:
    """In one process, with torch's own layers."""
    network = network_of(build(0, 1, launch_of(document | {"norm": {"kind": "batch"}})).module).double()
    network.load_state_dict(state)
    return network


# https://github.com/Lightning-AI/pytorch-lightning/issues/14866
def test_lightning_14866_averaged_weights_have_the_statistics_of_a_whole_pass(ranks: Pool, tmp_path: Path) -> None:
    """There they were those of the last batch, and a network of 75 % had an accuracy of 0."""
    document = averaged()

    state = ranks.run(train, 2, str(tmp_path), document)[0].state

    spec, network = read_spec(document), network_with(state, document)
    seen: dict[str, list[Tensor]] = {}
    for path, layer in network.named_modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.register_forward_pre_hook(lambda _, args, path=path: seen.setdefault(path, []).append(args[0]))
    for batch in train_loader(build_data(spec.data, spec.seed), global_batch=256, seed=spec.seed):
        network.train()(batch.x.double())
    assert seen
    for path, inputs in seen.items():
        values = torch.cat([x.transpose(0, 1).flatten(1) for x in inputs], 1)
        torch.testing.assert_close(state[f"{path}.running_mean"], values.mean(1), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(state[f"{path}.running_var"], values.var(1), rtol=1e-9, atol=1e-9)


# https://github.com/Lightning-AI/pytorch-lightning/issues/8811
def test_lightning_8811_validation_judges_the_average_with_its_own_statistics(ranks: Pool, tmp_path: Path) -> None:
    document = averaged()

    found = ranks.run(train, 2, str(tmp_path), document)[0]

    network, samples = network_with(found.state, document).eval(), build_data(read_spec(document).data, 0).val
    pairs = [samples[index] for index in range(len(samples))]  # type: ignore[arg-type]
    x, y = torch.stack([torch.as_tensor(pair[0]) for pair in pairs]), torch.tensor([int(pair[1]) for pair in pairs])
    with torch.no_grad():
        loss = nn.functional.cross_entropy(network(x.double()), y)
    assert found.metrics["val/loss"] == pytest.approx(float(loss), rel=1e-9)


def _steps(
    rank: int, world_size: int, root: str, document: dict[str, Any], resume_from: str | None, stop_at: int | None
) -> list[tuple[int, int]]:
    seen: list[Any] = []
    told = RecordingReporter(stop_at=stop_at)
    prepare: Any = lambda _trainer, module, _norms: seen.append(module)  # noqa: E731
    train(rank, world_size, root, document, resume_from, told, prepare=prepare)
    steps: list[tuple[int, int]] = seen[0].steps
    return steps


# https://github.com/Lightning-AI/pytorch-lightning/issues/19367
# https://github.com/Lightning-AI/pytorch-lightning/issues/19403
@pytest.mark.parametrize("stop_at", [1, 3, 4])
def test_lightning_19403_no_step_is_repeated_or_left_out_by_a_resume(stop_at: int, ranks: Pool, tmp_path: Path) -> None:
    """Three steps an epoch: stopped within one, at its end, and at the first of the next."""
    document = reported("CountsSteps", train={"epochs": 3})
    document["data"]["init_args"] = {"samples": 48}
    whole = ranks.run(_steps, 2, str(tmp_path / "whole"), document, None, None)[0]

    first = ranks.run(_steps, 2, str(tmp_path / "1"), document, None, stop_at)[0]
    newest = checkpoints.newest([tmp_path / "1" / "checkpoints"])
    assert newest is not None
    second = ranks.run(_steps, 2, str(tmp_path / "2"), document, str(newest.path), None)[0]

    assert [step for _, step in whole] == list(range(len(whole)))
    assert first + second == whole
    assert second


# https://github.com/Lightning-AI/pytorch-lightning/issues/18259
# https://github.com/Lightning-AI/pytorch-lightning/issues/4012
def test_lightning_4012_metrics_with_slashes_stop_training_and_name_checkpoints(ranks: Pool, tmp_path: Path) -> None:
    document = reported("GroupsMetrics", train={"epochs": 5})

    first, _ = ranks.run(train, 2, str(tmp_path), document)

    assert "valid/loss" in first.metrics
    kept = list((tmp_path / "checkpoints").iterdir())
    assert kept
    assert all(checkpoints.load(path)["epoch"] < 4 for path in kept)  # patience was over after two epochs of five


# https://github.com/Lightning-AI/pytorch-lightning/issues/8918
def test_lightning_8918_quantity_logged_twice_is_refused_by_its_name(ranks: Pool, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"self.log\(loss_train, ...\).*twice in `training_step` with different"):
        ranks.run(train, 1, str(tmp_path), reported("LogsTwice", workers=1))


@pytest.fixture
def run_logger(tmp_path: Path) -> Iterator[RunLogger]:
    with closing(Spool(tmp_path / "metrics.jsonl")) as spool:
        yield RunLogger(spool, tmp_path / "artifacts", run_id="0" * 32, experiment="demo", current_step=lambda: 7)


# https://github.com/Lightning-AI/pytorch-lightning/issues/5892
def test_lightning_5892_long_hyperparameter_is_cut_and_said(
    run_logger: RunLogger, caplog: pytest.LogCaptureFixture
) -> None:
    run_logger.log_hyperparams(Namespace(lr=0.1, names="x" * 7000))

    assert "param names. It is cut to 6000 of 7000 characters" in caplog.text
    assert "param lr" not in caplog.text


# https://github.com/Lightning-AI/pytorch-lightning/pull/11078
def test_lightning_11078_trained_network_holds_no_process_group(ranks: Pool, tmp_path: Path) -> None:
    """There, layers stayed SyncBatchNorm after training, and the network could not be run without a group."""
    document = averaged()
    del document["train"]["average"]
    document["train"]["epochs"] = 1

    state = ranks.run(train, 2, str(tmp_path), document)[0].state

    network = network_with(state, document).eval()  # torch's own layers, in a process that has no group
    assert torch.isfinite(network(torch.rand(2, 1, 8, 8, dtype=torch.float64))).all()
