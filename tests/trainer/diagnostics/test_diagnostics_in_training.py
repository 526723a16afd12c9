"""Diagnostics in a job of two workers: what they leave behind, and that training does not know of them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from syncnorm.trainer.reporting.metric_spool import DIAGNOSTIC_METRICS
from syncnorm.trainer.training import checkpoints
from tests.helpers.norm.pool import Pool
from tests.helpers.trainer.few_digits import BATCH, train
from tests.helpers.trainer.ranks import RecordingReporter, TrainedModel

ALL = list(DIAGNOSTIC_METRICS)
CNN = {"name": "cnn", "init_args": {"channels": [4, 8]}}
CNN_WITH_DROPOUT = {"name": "cnn", "init_args": {"channels": [4, 8], "dropout": 0.3}}
OWN = {"class_path": "tests.helpers.trainer.own_code.OwnLoss", "init_args": {"logs": True}}


def spec(kind: str = "sync_batch", diagnostics: list[str] = ALL, **changes: Any) -> dict[str, Any]:
    return {
        "name": "diagnosed",
        "model": CNN,
        # 6 batches an epoch, the last one smaller; augmentation and dropout draw random numbers.
        "data": {"name": "digits", "batch_size": BATCH // 2, "init_args": {"augment": True}},
        "norm": {"kind": kind},
        "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
        "train": {"epochs": 2},
        "statistics": {"every": {"steps": 5}},
        "resources": {"workers": 2},
        "diagnostics": diagnostics,
    } | changes


def series(root: Path) -> dict[tuple[str, int], float]:
    lines = [json.loads(line) for line in (root / "metrics.jsonl").read_text().splitlines()]
    return {(point["key"], point["step"]): point["value"] for point in lines}


def of_training(root: Path) -> dict[tuple[str, int], float]:
    timed = ("diagnostics/", "system/", "throughput", "norm/sync_share", "norm/slowest_rank", "norm/waiting_share")
    return {key: value for key, value in series(root).items() if not key[0].startswith(timed)}


def records(root: Path, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((root / "artifacts" / "diagnostics" / f"{name}.json").read_text())
    return found


@pytest.fixture(scope="module")
def measured(ranks: Pool, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[TrainedModel]]:
    """A job with synchronized batch normalization and all diagnostics on, and what its ranks ended with."""
    root = tmp_path_factory.mktemp("measured")
    return root, ranks.run(train, 2, str(root), spec())


def assert_training_is_the_same(
    plain: Path, without: list[TrainedModel], measured: Path, with_all: list[TrainedModel]
) -> None:
    for one, other in zip(without, with_all, strict=True):
        assert [name for name in one.state if not torch.equal(one.state[name], other.state[name])] == []
        assert one.metrics == other.metrics
    assert of_training(plain) == of_training(measured)
    statistics = sorted((plain / "artifacts").rglob("step-*.safetensors"))
    for path in statistics:
        there = load_file(measured / path.relative_to(plain))
        assert all(torch.equal(tensor, there[name]) for name, tensor in load_file(path).items())


def test_a_measured_job_ends_bit_for_bit_like_the_same_job_without(
    ranks: Pool, tmp_path: Path, measured: tuple[Path, list[TrainedModel]]
) -> None:
    without = ranks.run(train, 2, str(tmp_path), spec(diagnostics=[]))

    assert_training_is_the_same(tmp_path, without, *measured)
    assert any(key.endswith("/drift") for key, _ in of_training(tmp_path))


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"kind": "batch", "model": CNN_WITH_DROPOUT}, id="dropout-and-local-statistics"),
        pytest.param(
            {
                "kind": "sync_batch_renorm",
                "model": CNN_WITH_DROPOUT,
                "optimizer": {"name": "adamw", "lr": 0.01},
                "train": {"epochs": 2, "accumulate": 2, "clip_grad_norm": 0.5},
            },
            id="accumulation-and-adamw",
        ),
        pytest.param({"model": OWN}, id="own-training-step-that-logs"),
    ],
)
def test_measuring_changes_no_bit_of(ranks: Pool, tmp_path: Path, changes: dict[str, Any]) -> None:
    without = ranks.run(train, 2, str(tmp_path / "without"), spec(**changes, diagnostics=[]))

    with_all = ranks.run(train, 2, str(tmp_path / "with"), spec(**changes))

    assert_training_is_the_same(tmp_path / "without", without, tmp_path / "with", with_all)
    assert len(records(tmp_path / "with", "landscape")) > 3


def test_metrics_are_those_of_the_table_at_every_measured_step(measured: tuple[Path, list[TrainedModel]]) -> None:
    root, _ = measured

    found = {key for key in series(root) if key[0].startswith("diagnostics/")}

    names = {key.rsplit("/", 1)[1] for key, _ in found}
    assert names == {name for each in DIAGNOSTIC_METRICS.values() for name in each}
    # 12 steps in all, each of them measured.
    assert {step for key, step in found if key == "diagnostics/landscape/beta_smoothness"} == set(range(1, 13))
    assert {key.split("/")[1] for key, _ in found if key.endswith("/gradient_l2")} == {
        "features.0",
        "features.4",
        "fc.0",
    }


@pytest.mark.parametrize("name", ALL)
def test_pictures_show_something(measured: tuple[Path, list[TrainedModel]], name: str) -> None:
    root, _ = measured

    content = (root / "artifacts" / "diagnostics" / f"{name}.png").read_bytes()

    image = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"), dtype=float)
    assert image.shape[0] > 300
    assert image.shape[1] > 1000
    # Each of four vertical strips holds curves: colours, which letters and frames have none of.
    for strip in np.array_split(image, 4, axis=1):
        coloured = np.ptp(strip, axis=2) > 40
        assert coloured.sum() > 100
        assert strip.std() > 10


def test_two_workers_measure_what_one_measures_on_the_whole_batch(ranks: Pool, tmp_path: Path) -> None:
    exact = {
        "train": {"steps": 6, "precision": "64-true"},
        "model": {"name": "mlp", "init_args": {"hidden": [12, 9], "activation": "tanh"}},
    }
    for workers in (1, 2):
        document = spec(**exact, resources={"workers": workers}, data={"name": "digits", "batch_size": 48 // workers})
        ranks.run(train, workers, str(tmp_path / str(workers)), document)

    one, two = series(tmp_path / "1"), series(tmp_path / "2")

    keys = {key for key in one if key[0].startswith("diagnostics/")}
    assert keys == {key for key in two if key[0].startswith("diagnostics/")}
    # Behind a batch norm the gradients of constant pixels add up to 0, but for rounding: exactly 0 is a matter of luck.
    keys = {key for key in keys if not key[0].endswith("nonzero_gradient_share")}
    # fp64; differences of close gradients lose digits, and six steps add up.
    different = {key: (one[key], two[key]) for key in keys if one[key] != pytest.approx(two[key], rel=1e-6, abs=1e-12)}
    assert different == {}
    for first, second in zip(*(records(tmp_path / n, "gradient_histograms") for n in ("1", "2")), strict=True):
        for layer, panels in first["layers"].items():
            if "gradient_below" in panels:
                there = second["layers"][layer]["gradient_below"]
                moved = np.abs(np.subtract(panels["gradient_below"]["counts"], there["counts"])).sum()
                assert moved <= 4  # values that lie on the border of two bins
                assert sum(there["counts"]) == sum(panels["gradient_below"]["counts"]) > 0


def test_a_job_that_was_paused_shows_all_that_was_measured(
    ranks: Pool, tmp_path: Path, measured: tuple[Path, list[TrainedModel]]
) -> None:
    ranks.run(train, 2, str(tmp_path / "1"), spec(), None, RecordingReporter(stop_at=4))
    newest = checkpoints.newest([tmp_path / "1" / "checkpoints"])
    assert newest is not None

    ranks.run(train, 2, str(tmp_path / "2"), spec(), str(newest.path))

    assert not (tmp_path / "1" / "artifacts" / "diagnostics").exists()
    for name in ALL:
        assert records(tmp_path / "2", name) == records(measured[0], name)


def test_two_workers_take_the_step_of_one_device(measured: tuple[Path, list[TrainedModel]]) -> None:
    found = records(measured[0], "equivalence")

    assert len(found) == 12  # the uneven last batches of both epochs among them
    assert all(record["equal"] for record in found)
    assert max(record["gradient_difference"] for record in found) > 0  # rounding: the replay is another computation
    assert max(record["statistics_difference"] for record in found) < 1e-5


@pytest.mark.parametrize("norm", [{"kind": "batch"}, {"kind": "sync_batch", "group": 1}], ids=["kind", "group"])
def test_statistics_of_each_worker_alone_are_told_from_those_of_one_device(
    ranks: Pool, tmp_path: Path, norm: dict[str, Any]
) -> None:
    document = spec(diagnostics=["equivalence"], norm=norm, train={"steps": 3})

    ranks.run(train, 2, str(tmp_path), document)

    for record in records(tmp_path, "equivalence"):
        assert not record["equal"]
        assert record["gradient_difference"] > 10 * record["tolerance"]
        assert record["optimizer_difference"] < record["tolerance"]  # the average itself is right
