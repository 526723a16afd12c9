from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import sklearn.datasets
import torch

from syncnorm.trainer.contract.spec import DataSpec
from syncnorm.trainer.data import Data, DataInfo, build_data
from syncnorm.trainer.data.digits import load_digits
from syncnorm.trainer.data.split import stratified_split


def _build(name: str, seed: int = 0, **init_args: Any) -> Data:
    return build_data(DataSpec(name=name, batch_size=1, init_args=init_args), seed)


def _stack(data: Any, part: int = 0) -> torch.Tensor:
    return torch.stack([data[index][part] for index in range(len(data))])


BUILT_IN = [
    ("digits", {}, DataInfo("classification", 10, (1, 8, 8))),
    ("digits", {"augment": True}, DataInfo("classification", 10, (1, 8, 8))),
    ("digit_scenes", {"scenes": 4, "val_scenes": 2}, DataInfo("segmentation", 11, (1, 32, 32))),
    ("digit_scenes", {"dims": 3, "size": 12, "scenes": 4}, DataInfo("segmentation", 11, (1, 12, 12, 12))),
    ("synthetic", {"samples": 20}, DataInfo("classification", 10, (3, 32, 32))),
    ("synthetic", {"shape": [5], "num_classes": 3, "samples": 20}, DataInfo("classification", 3, (5,))),
    ("synthetic", {"shape": [5], "task": "regression", "samples": 20}, DataInfo("regression", 1, (5,))),
    ("synthetic", {"shape": [5], "task": "regression", "numbers": 3}, DataInfo("regression", 3, (5,))),
    ("synthetic", {"shape": [5], "task": "multilabel", "num_classes": 4}, DataInfo("multilabel", 4, (5,))),
]


@pytest.mark.parametrize(("name", "init_args", "info"), BUILT_IN)
def test_samples_are_what_the_info_says(name: str, init_args: dict[str, Any], info: DataInfo) -> None:
    data = _build(name, **init_args)

    for part in (data.train, data.val):
        x, y = part[0]
        assert (x.shape, x.dtype) == (info.shape, torch.float32)
        if info.is_vector:
            assert (y.shape, y.dtype) == ((info.num_classes,), torch.float32)
            assert info.task == "regression" or set(y.tolist()) <= {0.0, 1.0}
            continue
        assert y.dtype == torch.int64
        assert y.shape == (info.shape[1:] if info.task == "segmentation" else ())
        assert 0 <= int(y.min()) <= int(y.max()) < info.num_classes
    assert data.info == info


@pytest.mark.parametrize(("name", "init_args", "info"), BUILT_IN)
def test_same_seed_gives_the_same_samples_and_another_seed_others(
    name: str, init_args: dict[str, Any], info: DataInfo
) -> None:
    first, again, other = (_build(name, seed, **init_args).val for seed in (1, 1, 2))

    assert torch.equal(first[0][0], again[0][0])
    assert not torch.equal(first[0][0], other[0][0])


def test_digits_are_those_of_scikit_learn() -> None:
    expected = sklearn.datasets.load_digits()

    images, labels = load_digits()

    assert np.array_equal(images.numpy() * 16, expected.images)
    assert np.array_equal(labels.numpy(), expected.target)


def test_digits_are_all_there_once_and_normalized() -> None:
    data = _build("digits")

    x = torch.cat([_stack(data.train), _stack(data.val)])

    assert len(x) == 1797
    assert len(x.flatten(1).unique(dim=0)) == 1797
    assert x.mean().item() == pytest.approx(0, abs=1e-3)  # the constants have four digits
    assert x.std().item() == pytest.approx(1, abs=1e-3)


def test_every_class_of_digits_is_held_out_alike() -> None:
    data = _build("digits", val_fraction=0.25)

    shares = torch.bincount(_stack(data.val, 1)) / torch.bincount(
        torch.cat([_stack(data.val, 1), _stack(data.train, 1)])
    )

    assert shares.tolist() == pytest.approx([0.25] * 10, abs=0.5 / 170)  # to the nearest of about 175 samples


def test_split_keeps_a_sample_of_each_class_on_both_sides() -> None:
    labels = np.array([0] * 100 + [1, 1] + [2])

    train, val = stratified_split(labels, 0.01, seed=0)

    assert sorted([*train, *val]) == list(range(103))
    assert np.bincount(labels[val], minlength=3).tolist() == [1, 1, 0]


def test_shifted_digits_are_the_digit_moved_with_ground_at_the_rim() -> None:
    data = _build("digits", augment=True)
    x, _ = data.train[0]
    ground = x.min()
    framed = torch.full((1, 10, 10), ground.item())
    framed[:, 1:9, 1:9] = x
    moves = [framed[:, down : down + 8, right : right + 8] for down in range(3) for right in range(3)]

    drawn = [data.train.read(0, np.random.default_rng(seed))[0] for seed in range(60)]  # type: ignore[attr-defined]

    seen = {next(i for i, move in enumerate(moves) if torch.equal(move, image)) for image in drawn}
    assert seen == set(range(9))


def test_scenes_label_ink_and_nothing_else() -> None:
    data = _build("digit_scenes", digits=1, scenes=32)
    x, y = _stack(data.train), _stack(data.train, 1)

    labels_per_scene = [set(scene.unique().tolist()) - {0} for scene in y]

    assert all(len(labels) == 1 for labels in labels_per_scene)
    assert x[:, 0][y > 0].mean() > x[:, 0][y == 0].mean() + 1


def test_scenes_of_training_and_validation_share_no_digit() -> None:
    train, val = (_build("digit_scenes").train, _build("digit_scenes").val)

    def images(part: Any) -> set[bytes]:
        return {image.tobytes() for image in part._images}

    assert images(train).isdisjoint(images(val))
    assert len(images(train)) + len(images(val)) == 1797


def test_scenes_of_few_classes_hold_the_first_digits_only() -> None:
    data = _build("digit_scenes", classes=3, dims=3, size=12, scenes=32)

    labels = {int(label) for index in range(32) for label in data.train.read(index, None)[1].unique()}

    assert labels == {0, 1, 2, 3}
    assert data.info.num_classes == 4


def test_exposure_moves_brightness_of_whole_scenes() -> None:
    plain, exposed = (_build("digit_scenes", exposure=exposure, scenes=64).train for exposure in (0.0, 1.0))

    means = [_stack(part).flatten(1).mean(1) for part in (plain, exposed)]

    assert means[1].std() > 3 * means[0].std()
    assert torch.equal(_stack(plain, 1), _stack(exposed, 1))


def test_targets_of_synthetic_data_follow_from_its_samples() -> None:
    options = {"shape": [6], "samples": 50, "num_classes": 3, "numbers": 3}
    numbers, labels = (_build("synthetic", task=task, **options).train for task in ("regression", "multilabel"))
    x, y = _stack(numbers), _stack(numbers, 1)

    weights = torch.linalg.lstsq(x, y).solution

    torch.testing.assert_close(x @ weights, y, rtol=1e-4, atol=1e-4)  # fp32
    assert torch.equal(_stack(labels, 1), (y > 0).float())


def test_noise_of_clusters_is_drawn_anew_for_every_sample() -> None:
    data = _build("synthetic", samples=20, num_classes=10)

    noise = data.train[0][0] - data.train[10][0]

    assert noise.std().item() == pytest.approx(2**0.5, rel=0.05)  # 3072 draws


def test_reading_behind_the_end_is_an_index_error() -> None:
    for name in ("synthetic", "digit_scenes"):
        data = _build(name)
        with pytest.raises(IndexError):
            data.train[len(data.train)]  # type: ignore[arg-type]


def test_unknown_data_is_refused_with_what_there_is() -> None:
    with pytest.raises(ValueError, match=r"data.name must be one of coco, digit_scenes, digits, image_folder, nifti"):
        _build("mnist")


def test_info_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        _build("digits").info.num_classes = 3  # type: ignore[misc]
