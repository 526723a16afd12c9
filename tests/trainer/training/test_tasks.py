from __future__ import annotations

import pytest
import sklearn.metrics
import torch
from torch import Tensor, nn

from syncnorm.trainer.data import DataInfo
from syncnorm.trainer.data.sampler import share_bounds
from syncnorm.trainer.training.tasks.loss import task_loss
from syncnorm.trainer.training.tasks.scores import Scores, score_names
from tests.helpers.norm.pool import Pool

DIGITS = DataInfo("classification", 3, (1, 8, 8))
SCENES = DataInfo("segmentation", 3, (1, 4, 4))
NUMBERS = DataInfo("regression", 2, (5,))
LABELS = DataInfo("multilabel", 4, (5,))


def _logits(classes: Tensor) -> Tensor:
    """Scores whose largest is at `classes`."""
    return nn.functional.one_hot(classes, 3).movedim(-1, 1).double() * 4


@pytest.mark.parametrize("info", [DIGITS, SCENES])
def test_empty_batch_has_a_loss_of_zero_that_reaches_the_model(info: DataInfo) -> None:
    model = nn.Conv2d(1, 3, 1)
    spatial = (4, 4) if info.task == "segmentation" else ()
    out = model(torch.zeros(0, 1, 4, 4))
    out = out if spatial else out.mean((2, 3))

    loss = task_loss(info, out, torch.zeros(0, *spatial, dtype=torch.int64))
    loss.backward()

    assert loss.item() == 0.0
    assert all(param.grad is not None and not param.grad.any() for param in model.parameters())


def test_loss_is_the_mean_over_samples_and_pixels() -> None:
    torch.manual_seed(0)
    out, target = torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.randint(3, (2, 4, 4))

    loss = task_loss(SCENES, out, target)

    picked = out.log_softmax(1).gather(1, target[:, None])
    torch.testing.assert_close(loss, -picked.mean(), rtol=1e-10, atol=1e-10)  # fp64


@pytest.mark.parametrize(
    ("info", "shape", "target"), [(DIGITS, (2, 5), (2,)), (SCENES, (2, 3), (2, 4, 4)), (DIGITS, (2, 3, 4, 4), (2,))]
)
def test_output_of_another_shape_is_refused(info: DataInfo, shape: tuple[int, ...], target: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"model must return .* for {info.task} with 3 classes, got"):
        task_loss(info, torch.zeros(shape), torch.zeros(target, dtype=torch.int64))


@pytest.mark.parametrize("sizes", [[6], [1, 5], [2, 0, 4], [3, 3]])
def test_scores_do_not_depend_on_how_samples_are_batched(sizes: list[int]) -> None:
    target = torch.tensor([0, 0, 1, 1, 2, 2])
    out = _logits(torch.tensor([0, 1, 1, 1, 0, 2]))
    scores = Scores(DIGITS, "val")

    for x, y in zip(out.split(sizes), target.split(sizes), strict=True):
        scores.update(x, y, task_loss(DIGITS, x, y))
    values = scores.compute()

    assert values.keys() == {"val/loss", "val/accuracy"}
    assert values["val/accuracy"].item() == pytest.approx(4 / 6, abs=1e-6)  # fp32
    assert values["val/loss"].item() == pytest.approx(task_loss(DIGITS, out, target).item(), abs=1e-6)  # fp32


def test_segmentation_scores_come_from_all_pixels_and_the_classes_that_occur() -> None:
    target = torch.tensor([[[0, 0], [0, 1]], [[0, 0], [0, 0]]])
    out = _logits(torch.tensor([[[0, 0], [1, 1]], [[0, 0], [0, 0]]]))
    scores = Scores(SCENES, "val")

    scores.update(out, target, task_loss(SCENES, out, target))
    values = scores.compute()

    # class 0: 6 right of 7 in the union; class 1: 1 of 2; class 2 does not occur
    assert values.keys() == {"val/loss", "val/mean_iou", "val/dice"}
    assert values["val/mean_iou"].item() == pytest.approx((6 / 7 + 1 / 2) / 2, abs=1e-6)  # fp32
    assert values["val/dice"].item() == pytest.approx((12 / 13 + 2 / 3) / 2, abs=1e-6)


def test_reset_scores_start_from_nothing() -> None:
    scores = Scores(DIGITS, "train")
    wrong, right = _logits(torch.tensor([1, 1])), _logits(torch.tensor([0, 0]))
    target = torch.tensor([0, 0])
    scores.update(wrong, target, task_loss(DIGITS, wrong, target))

    scores.reset()
    scores.update(right, target, task_loss(DIGITS, right, target))

    assert scores.compute()["train/accuracy"].item() == 1.0


def test_names_of_scores_are_those_of_the_contract() -> None:
    assert score_names(DIGITS) == ("accuracy",)
    assert score_names(SCENES) == ("mean_iou", "dice")
    assert score_names(NUMBERS) == ("mae", "rmse")
    assert score_names(LABELS) == ("map_micro", "accuracy")


def _scores_of_a_rank(rank: int, world_size: int, target: Tensor, out: Tensor) -> dict[str, float]:
    """The ranks' parts of a batch of three; of two ranks, the second has nothing of the batch after it."""
    scores = Scores(DIGITS, "val")
    for batch in (slice(0, 3), slice(3, 4)):
        start, end = share_bounds(len(target[batch]), rank, world_size)
        x, y = out[batch][start:end], target[batch][start:end]
        scores.update(x, y, task_loss(DIGITS, x, y))
    return {name: value.item() for name, value in scores.compute().items()}


def test_scores_of_two_ranks_are_those_of_all_samples(ranks: Pool) -> None:
    target = torch.tensor([0, 0, 1, 1])
    out = _logits(torch.tensor([0, 1, 1, 2]))

    first, second = ranks.run(_scores_of_a_rank, 2, target, out)

    assert first == second
    assert first["val/accuracy"] == 0.5
    assert first["val/loss"] == pytest.approx(task_loss(DIGITS, out, target).item(), abs=1e-12)  # fp64


def _samples(info: DataInfo, count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(count)
    out, noise = torch.randn(2, count, info.num_classes, dtype=torch.float64, generator=generator) * 3
    return out, (out + noise > 0).float() if info.task == "multilabel" else noise


@pytest.mark.parametrize("sizes", [[50], [1, 30, 0, 19]])
def test_scores_of_numbers_are_those_of_scikit_learn(sizes: list[int]) -> None:
    out, target = _samples(NUMBERS, 50)
    scores = Scores(NUMBERS, "val")

    for x, y in zip(out.split(sizes), target.split(sizes), strict=True):
        scores.update(x, y, task_loss(NUMBERS, x, y))
    values = {name: value.item() for name, value in scores.compute().items()}

    squared = sklearn.metrics.mean_squared_error(target, out)
    expected = {"val/loss": squared, "val/mae": sklearn.metrics.mean_absolute_error(target, out)}
    assert values == pytest.approx(expected | {"val/rmse": squared**0.5}, rel=1e-12)  # fp64


@pytest.mark.parametrize("sizes", [[50], [1, 30, 0, 19]])
def test_scores_of_labels_are_those_of_scikit_learn(sizes: list[int]) -> None:
    out, target = _samples(LABELS, 50)
    scores = Scores(LABELS, "val")

    for x, y in zip(out.split(sizes), target.split(sizes), strict=True):
        scores.update(x, y, task_loss(LABELS, x, y))
    values = {name: value.item() for name, value in scores.compute().items()}

    precision = sklearn.metrics.average_precision_score(target, out, average="micro")
    expected = {"val/map_micro": precision, "val/accuracy": ((out > 0) == target).double().mean().item()}
    assert {name: values[name] for name in expected} == pytest.approx(expected, rel=1e-6)  # fp32 in torchmetrics
    assert values["val/loss"] == pytest.approx(sklearn.metrics.log_loss(target.ravel(), out.sigmoid().ravel()))


def test_a_single_number_may_come_without_a_dimension_of_its_own() -> None:
    info = DataInfo("regression", 1, (5,))
    out, target = torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([1.0, 4.0, 4.0])

    # Not the mean over 3 x 3 pairs, which broadcasting would make of them.
    assert task_loss(info, out, target).item() == pytest.approx(4 / 3)


@pytest.mark.parametrize(
    ("info", "out", "target", "message"),
    [
        (NUMBERS, (3, 1), (3, 2), r"model must return \(3, 2\) for regression with 2 numbers, got \(3, 1\)"),
        (LABELS, (3,), (3, 4), r"model must return \(3, 4\) for multilabel with 4 labels, got \(3,\)"),
        (LABELS, (3, 4), (3, 5), r"data must have 4 labels in each target, got targets of \(3, 5\)"),
    ],
)
def test_vectors_of_another_length_are_refused(
    info: DataInfo, out: tuple[int, ...], target: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        task_loss(info, torch.zeros(out), torch.zeros(target))


def _scores_of_share(rank: int, world_size: int, counts: list[int]) -> dict[str, float]:
    out, target = _samples(LABELS, sum(counts))
    mine = slice(sum(counts[:rank]), sum(counts[: rank + 1]))
    scores = Scores(LABELS, "val")
    scores.update(out[mine], target[mine], task_loss(LABELS, out[mine], target[mine]))
    return {name: value.item() for name, value in scores.compute().items()}


@pytest.mark.parametrize("counts", [[7, 3], [10, 0], [0, 10]])
def test_precision_over_ranks_is_that_of_all_samples_even_if_one_has_none(ranks: Pool, counts: list[int]) -> None:
    out, target = _samples(LABELS, 10)

    found = ranks.run(_scores_of_share, 2, counts)

    expected = sklearn.metrics.average_precision_score(target, out, average="micro")
    assert [values["val/map_micro"] for values in found] == pytest.approx([expected] * 2, rel=1e-6)
