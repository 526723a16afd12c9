"""Volumes: loss and training of patches, scores of whole volumes by windows, on any number of workers."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from syncnorm.trainer.data.info import DataInfo, Windows
from syncnorm.trainer.data.loader import val_loader
from syncnorm.trainer.training import checkpoints
from syncnorm.trainer.training.evaluation import evaluate
from syncnorm.trainer.training.tasks.dice import SMOOTH, Dice, dice_cross_entropy
from syncnorm.trainer.training.tasks.scales import coarser, over_scales, score_scales
from syncnorm.trainer.training.tasks.sliding_window import SlidingWindow
from syncnorm.trainer.training.tasks.task import Task
from syncnorm.trainer.training.tasks.volume_slices import most_foreground
from tests.helpers.combinations import each_value
from tests.helpers.norm.pool import Pool
from tests.helpers.trainer.ranks import RecordingReporter, train
from tests.helpers.trainer.volume_data import CLASSES, volume_data

WINDOWS = Windows(overlap=0.5, blending="gaussian", at_once=3)


def spec(workers: int, **changes: Any) -> dict[str, Any]:
    return {
        "name": "volumes",
        "model": {"name": "unet", "init_args": {"dims": 3, "width": 4, "depth": 1}},
        # Twelve patches: three steps an epoch.
        "data": {"name": "synthetic", "batch_size": 4 // workers},
        "norm": {"kind": "sync_batch"},
        "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
        "train": {"epochs": 1, "precision": "64-true", "checkpoint_every": {"epochs": 1}},
        "resources": {"workers": workers},
    } | changes


# Windows


@pytest.mark.parametrize("shape", [(8, 8, 8), (9, 14, 23), (16, 12, 8), (5, 20, 8)])
@pytest.mark.parametrize("blending", ["gaussian", "constant"])
@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.8])
def test_windows_of_a_network_without_context_give_what_the_whole_does(
    shape: tuple[int, ...], blending: Any, overlap: float
) -> None:
    x = torch.randn(2, 1, *shape, dtype=torch.float64)
    windows = SlidingWindow((8, 8, 8), Windows(overlap, blending, at_once=3))

    found = windows(x, lambda part: torch.cat([part, part**2], dim=1))

    torch.testing.assert_close(found, torch.cat([x, x**2], dim=1), rtol=1e-10, atol=1e-10)


def test_overlapping_windows_are_averaged_by_their_weights() -> None:
    x, network = torch.randn(1, 1, 10, 8, 8, dtype=torch.float64), torch.nn.Conv3d(1, 2, 3, padding=1).double()
    windows = SlidingWindow((8, 8, 8), WINDOWS)

    with torch.no_grad():
        found, (first, last) = windows(x, network), (network(x[:, :, :8]), network(x[:, :, 2:]))

    curve = np.exp(-0.5 * (np.arange(8) - 3.5) ** 2)  # one voxel is an eighth of the side
    for z in range(10):
        of_first, of_last = curve[z] if z < 8 else 0.0, curve[z - 2] if z >= 2 else 0.0
        expected = torch.zeros_like(found[:, :, z])
        expected += of_first * first[:, :, z] if z < 8 else 0.0
        expected += of_last * last[:, :, z - 2] if z >= 2 else 0.0
        torch.testing.assert_close(found[:, :, z], expected / (of_first + of_last), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("length", "overlap"), [(8, 0.5), (9, 0.5), (23, 0.5), (100, 0.3), (17, 0.95), (30, 0.0)])
def test_windows_cover_everything_and_overlap_as_asked(length: int, overlap: float) -> None:
    places = list(SlidingWindow((8,), Windows(overlap, "constant", 1)).places((length,)))

    starts = [place[0].start for place in places]
    assert starts[0] == 0
    assert places[-1][0].stop == length
    assert all(second - first <= max(1, int(8 * (1 - overlap))) for first, second in itertools.pairwise(starts))
    assert len(set(starts)) == len(starts)


# Loss


@pytest.mark.parametrize("piece", [2**22, 7])
def test_the_loss_is_cross_entropy_and_dice_of_each_sample(monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr("syncnorm.trainer.training.tasks.dice.PIECE", piece)
    rng = np.random.default_rng(0)
    scores, target = rng.normal(size=(3, CLASSES, 4, 5, 6)), rng.integers(0, CLASSES, (3, 4, 5, 6))

    found = dice_cross_entropy(torch.from_numpy(scores), torch.from_numpy(target))

    p = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    for sample in range(3):
        own = np.take_along_axis(p[sample], target[sample][None], 0)
        dice = [
            (2 * p[sample, k][target[sample] == k].sum() + SMOOTH)
            / (p[sample, k].sum() + (target[sample] == k).sum() + SMOOTH)
            for k in range(1, CLASSES)
        ]
        assert float(found[sample]) == pytest.approx(-np.log(own).mean() + 1 - np.mean(dice), rel=1e-12)


def test_coarser_masks_have_the_value_at_the_centre_of_each_position() -> None:
    mask = torch.arange(8)[None, :, None, None].expand(1, 8, 4, 3)

    found = coarser(mask, torch.zeros(1, CLASSES, 4, 2, 3))

    assert found.shape == (1, 4, 2, 3)
    assert found[0, :, 0, 0].tolist() == [1, 3, 5, 7]


def test_resolutions_count_half_as_much_each() -> None:
    target = torch.randint(CLASSES, (2, 8, 8, 8))
    scales = [torch.randn(2, CLASSES, side, side, side, dtype=torch.float64) for side in (8, 4, 2)]

    found = over_scales(scales, target, lambda output, mask: dice_cross_entropy(output, mask).mean())

    each = [float(dice_cross_entropy(one, coarser(target, one)).mean()) for one in scales]
    assert float(found) == pytest.approx((each[0] + each[1] / 2 + each[2] / 4) / 1.75, rel=1e-12)


SCORES = torch.zeros(2, CLASSES, 8, 8, 8)


@pytest.mark.parametrize(
    ("output", "count"),
    [
        ([SCORES, SCORES[:, :, ::2, ::2, ::2]], 2),
        ((SCORES,), 1),
        (torch.stack([SCORES] * 3, dim=1), 3),  # as of MONAI's DynUNet
        (SCORES, None),
        ((SCORES, torch.zeros(2, 16)), None),  # scores and an embedding
        ([SCORES[:, :, ::2, ::2, ::2], SCORES], None),
        ({"out": SCORES}, None),
    ],
)
def test_scores_at_several_resolutions_are_recognized(output: Any, count: int | None) -> None:
    found = score_scales(output, CLASSES, 3)

    assert (None if found is None else len(found)) == count


# Scores


class Threshold(nn.Module):
    """Scores by brightness alone, so that windows change nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([-((x - level) ** 2) for level in range(CLASSES)], dim=1)


def plain_dice(volumes: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """The same with numpy, from (prediction, truth)."""
    found = {}
    for label in range(1, CLASSES):
        each = []
        for predicted, truth in volumes:
            size = (predicted == label).sum() + (truth == label).sum()
            each += [2 * ((predicted == label) & (truth == label)).sum() / size] if size else []
        found[f"val/dice_{label}"] = float(np.mean(each))
    return found | {"val/dice": float(np.mean(list(found.values())))}


def _validate(rank: int, world_size: int, volumes: int) -> dict[str, float]:
    data = volume_data(val=volumes)
    loader = val_loader(data, global_batch=world_size, rank=rank, world_size=world_size)
    task = Task(data.info, inferer=SlidingWindow(data.info.shape[1:], WINDOWS))
    return evaluate(Threshold(), task, loader, torch.device("cpu"))


# First of all a rank without a volume, and uneven shares.
@pytest.mark.parametrize(("world_size", "volumes"), each_value([2, 3, 1], [1, 5, 6]))
def test_dice_of_any_number_of_ranks_is_that_of_numpy(ranks: Pool, world_size: int, volumes: int) -> None:
    of_ranks = ranks.run(_validate, world_size, volumes)

    data = volume_data(val=volumes)
    whole = [data.val[index] for index in range(volumes)]
    expected = plain_dice([(Threshold()(x[None])[0].argmax(0).numpy(), y.numpy()) for x, y in whole])
    assert len(of_ranks) == world_size
    for found in of_ranks:
        assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-9)
        assert found["val/loss"] == pytest.approx(of_ranks[0]["val/loss"], rel=1e-12)


def test_a_class_that_a_volume_lacks_does_not_count_for_it() -> None:
    dice = Dice(CLASSES, of_each=True)

    dice.update(torch.tensor([[0, 1, 1], [0, 0, 0]]), torch.tensor([[0, 1, 0], [0, 0, 2]]))

    # Class 1: 2/3 in the first, absent in the second. Class 2: absent in the first, missed in the second.
    assert {name: float(value) for name, value in dice.compute().items()} == pytest.approx(
        {"dice": 1 / 3, "dice_1": 2 / 3, "dice_2": 0.0}
    )


def test_dice_of_patches_counts_all_of_them_together() -> None:
    dice = Dice(CLASSES, of_each=False)

    for predicted, truth in (([0, 1, 1], [0, 1, 0]), ([1, 1, 0], [1, 1, 0])):
        dice.update(torch.tensor([predicted]), torch.tensor([truth]))

    assert {name: float(value) for name, value in dice.compute().items()} == pytest.approx(
        {"dice": 6 / 7, "dice_1": 6 / 7}
    )


# Training


@pytest.mark.parametrize("workers", [2, 4])
def test_workers_equal_one_device_for_three_steps(ranks: Pool, tmp_path: Path, workers: int) -> None:
    world_size = min(workers, 3)  # 4 patches on 3 ranks are uneven
    many = ranks.run(train, world_size, str(tmp_path / "many"), spec(workers), None, None, volume_data(train=3, val=4))
    one = ranks.run(train, 1, str(tmp_path / "one"), spec(1), None, None, volume_data(train=3, val=4))[0]

    # fp64: three steps amplify rounding of 1e-16 by some orders, nothing more.
    for name, tensor in one.state.items():
        torch.testing.assert_close(many[0].state[name], tensor, rtol=1e-9, atol=1e-9)
    scores = sorted(name for name in one.metrics if "dice" in name)
    assert scores == ["train/dice", "train/dice_1", "train/dice_2", "val/dice", "val/dice_1", "val/dice_2"]
    for name in scores:
        assert many[0].metrics[name] == pytest.approx(one.metrics[name], abs=1e-9)
    for name in ("train/loss", "val/loss"):
        assert many[0].metrics[name] == pytest.approx(one.metrics[name], rel=1e-9)


def test_a_stopped_job_continues_with_the_patches_that_are_left(ranks: Pool, tmp_path: Path) -> None:
    whole = ranks.run(train, 2, str(tmp_path / "whole"), spec(2), None, None, volume_data())[0]

    stop = RecordingReporter(stop_at=1)
    ranks.run(train, 2, str(tmp_path / "first"), spec(2), None, stop, volume_data())
    newest = checkpoints.newest([tmp_path / "first" / "checkpoints"])
    assert newest is not None
    rest = ranks.run(train, 2, str(tmp_path / "rest"), spec(2), str(newest.path), None, volume_data())[0]

    assert all(torch.equal(rest.state[name], tensor) for name, tensor in whole.state.items())
    assert rest.metrics == whole.metrics


def test_equivalence_is_proved_for_a_network_of_volumes(ranks: Pool, tmp_path: Path) -> None:
    ranks.run(train, 2, str(tmp_path), spec(2, diagnostics=["equivalence"]), None, None, volume_data())

    records = (tmp_path / "artifacts" / "diagnostics" / "equivalence.json").read_text()
    assert records.count('"equal": true') == 3
    assert '"equal": false' not in records


def test_the_data_says_how_whole_volumes_are_run() -> None:
    info = volume_data(overlap=0.25, blending="constant", windows_at_once=2).info

    assert info == DataInfo("segmentation", CLASSES, (1, 8, 8, 8), Windows(0.25, "constant", 2))


def test_pictures_show_the_first_volumes() -> None:
    data = volume_data(val=5)
    task = Task(data.info, inferer=SlidingWindow(data.info.shape[1:], WINDOWS))

    found = dict(task.pictures(Threshold(), data))

    assert list(found) == ["volume_0.png", "volume_1.png", "volume_2.png"]
    assert all(picture.startswith(b"\x89PNG") for picture in found.values())


def test_a_picture_is_of_the_slice_with_the_most_foreground() -> None:
    truth, predicted = np.zeros((4, 5, 6), int), np.zeros((4, 5, 6), int)
    predicted[1, 1:4] = 1
    assert most_foreground(truth, predicted, axis=0) == 1

    truth[2, 3, 1:4] = 2

    assert [most_foreground(truth, predicted, axis) for axis in range(2)] == [2, 3]
