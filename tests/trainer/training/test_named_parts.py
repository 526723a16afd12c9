"""Loss, metrics and inferer of a plain network, named by class path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sklearn.metrics
import torch
from torchmetrics.classification import MulticlassAUROC, MulticlassF1Score
from torchmetrics.regression import PearsonCorrCoef

from syncnorm.trainer.contract.spec_reader import read_spec
from syncnorm.trainer.data import DataInfo
from syncnorm.trainer.training.tasks.loss import task_loss
from syncnorm.trainer.training.tasks.scores import Scores
from syncnorm.trainer.worker.model_inspection import inspect
from syncnorm.trainer.worker.module_and_data import assemble
from tests.helpers.norm.pool import Pool
from tests.helpers.trainer import own_tasks
from tests.helpers.trainer.ranks import train
from tests.trainer.training.test_tasks_on_two_ranks import OWN, job, own, synthetic

SCENES = {"name": "digit_scenes", "init_args": {"size": 16, "classes": 3, "scenes": 11, "val_scenes": 5}}
CLASSES = own("classes", num_classes=3)


def small(**parts: Any) -> dict[str, Any]:
    return {"model": {"class_path": f"{OWN}.Small", "init_args": {"in_channels": 5}, **parts}}


def per_position(**parts: Any) -> dict[str, Any]:
    return {"model": {"class_path": f"{OWN}.PerPosition", "init_args": {"in_channels": 1}, **parts}}


def named(class_path: str, **init_args: Any) -> dict[str, Any]:
    return {"class_path": class_path, "init_args": init_args}


LOSSES = {
    "smooth": (own("numbers"), small(loss=named("torch.nn.SmoothL1Loss", beta=0.5))),
    "per sample": (own("number"), small(loss=named("torch.nn.L1Loss", reduction="none"))),
    "smoothed labels": (CLASSES, small(loss=named("torch.nn.CrossEntropyLoss", label_smoothing=0.2))),
    "masks with a channel": (SCENES, per_position(loss=named(f"{OWN}.ChannelLoss"))),
}


@pytest.mark.parametrize("name", LOSSES)
def test_two_workers_with_a_named_loss_equal_one(ranks: Pool, tmp_path: Path, name: str) -> None:
    data, model = LOSSES[name]
    two = ranks.run(train, 2, str(tmp_path / "two"), job(2, data, **model))[0]
    one = ranks.run(train, 1, str(tmp_path / "one"), job(1, data, **model))[0]

    for path, tensor in one.state.items():
        torch.testing.assert_close(two.state[path], tensor, rtol=1e-9, atol=1e-9)  # fp64
    assert two.metrics["val/loss"] == pytest.approx(one.metrics["val/loss"], rel=1e-9)


def test_a_named_loss_is_the_one_that_is_trained(ranks: Pool, tmp_path: Path) -> None:
    data, model = LOSSES["smooth"]
    smooth = ranks.run(train, 1, str(tmp_path / "smooth"), job(1, data, **model))[0]
    squared = ranks.run(train, 1, str(tmp_path / "squared"), job(1, data))[0]

    assert not torch.allclose(smooth.state["head.weight"], squared.state["head.weight"])


def test_a_loss_with_class_weights_trains_and_is_said_to_be_inexact_over_workers(ranks: Pool, tmp_path: Path) -> None:
    document = job(2, CLASSES, **small(loss=named("torch.nn.CrossEntropyLoss", weight=[1, 5, 0.5])))

    found = inspect(read_spec(document)).guarantees
    trained = ranks.run(train, 2, str(tmp_path), document)[0]

    assert found is not None
    assert found.equals_one_device.holds == "partly"
    assert "model.loss of several samples is not the mean of their losses" in found.equals_one_device.why
    assert trained.metrics["train/loss"] > 0


def test_a_mean_over_samples_is_said_to_be_exact() -> None:
    found = inspect(read_spec(job(2, *LOSSES["smooth"][:1], **LOSSES["smooth"][1]))).guarantees

    assert found is not None
    assert found.equals_one_device.holds == "yes"


@pytest.mark.parametrize(
    ("data", "part", "message"),
    [
        (CLASSES, {"loss": named("torch.nn.NoLoss")}, "model.loss.class_path must name a class"),
        (
            CLASSES,
            {"loss": named("torch.nn.CrossEntropyLoss", smoothing=1)},
            "model.loss.init_args must fit .* 'smoothing'",
        ),
        (
            CLASSES,
            {"loss": named("torch.nn.CrossEntropyLoss", weight=[1, 2])},
            "model.loss must take float32 .* raised",
        ),
        (
            CLASSES,
            {"loss": named("torch.nn.MSELoss")},
            "model.loss must take float32 .8, 3. and int64 .8,., but .* raised",
        ),
        (
            CLASSES,
            {"loss": named("torch.nn.CrossEntropyLoss", reduction="sum")},
            "model.loss must be a mean over samples",
        ),
        (own("numbers"), {"loss": named(f"{OWN}.LearnedLoss")}, "model.loss must have nothing to train"),
        (CLASSES, {"metrics": {"f1": named(f"{OWN}.Halves")}}, "model.metrics.f1 must be a single torchmetrics.Metric"),
        (
            CLASSES,
            {"metrics": {"f1": named("torchmetrics.classification.MulticlassF1Score", num_classes=3, average="none")}},
            r"model.metrics.f1 must give one number, but .* gave shape \(3,\)",
        ),
        (
            CLASSES,
            {"metrics": {"f1": named("torchmetrics.classification.MulticlassF1Score", num_classes=2)}},
            "model.metrics.f1 must take float32 .* raised",
        ),
        (
            CLASSES,
            {"metrics": {"accuracy": named("torchmetrics.classification.MulticlassF1Score", num_classes=3)}},
            "model.metrics.accuracy must have another name: val/accuracy is",
        ),
    ],
)
def test_a_part_that_does_not_fit_is_refused_in_the_plan(
    data: dict[str, Any], part: dict[str, Any], message: str
) -> None:
    _refused(job(1, data, **small(**part)), message)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (
            {"inferer": named(f"{OWN}.Halves")},
            r"model.inferer must give outputs of shape \(2, 4, 16, 16\) .* gave \(2, 4, 16, 8\)",
        ),
        ({"inferer": named(f"{OWN}.Windows", width=-1)}, "model.inferer must take float32 .* raised"),
        (
            {"inferer": named("fractions.Fraction")},
            "model.inferer must be called with .samples, network., but .* gave a Fraction",
        ),
    ],
)
def test_an_inferer_that_does_not_fit_is_refused_in_the_plan(part: dict[str, Any], message: str) -> None:
    _refused(job(1, SCENES, **per_position(**part)), message)


def _refused(document: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        assemble(read_spec(document), 0, 1)

    finding = inspect(read_spec(document)).findings[0]
    assert finding.severity == "error"
    assert message.startswith(finding.path)


@pytest.mark.parametrize("field", ["loss", "metrics", "inferer", "aux_weights"])
def test_a_lightning_module_has_none_of_these(field: str) -> None:
    part: Any = {"aux_weights": {"aux": 1.0}, "metrics": {"f1": named("torch.nn.L1Loss")}}.get(
        field, named("torch.nn.L1Loss")
    )
    model = {"class_path": "tests.helpers.trainer.own_modules.Hooks", field: part}
    document = {"name": "own", "model": model, "data": {"class_path": "tests.helpers.trainer.own_modules.Points"}}

    _refused(document, f"model.{field} must be left out: it is for plain networks, but Hooks is a LightningModule")


def _named_scores(rank: int, world_size: int, counts: list[int]) -> dict[str, float]:
    out, target = _classified(sum(counts))
    mine, info = slice(sum(counts[:rank]), sum(counts[: rank + 1])), DataInfo("classification", 3, (5,))
    metrics = {"f1": MulticlassF1Score(3, average="macro"), "auroc": MulticlassAUROC(3, average="macro")}
    scores = Scores(info, "val", metrics)
    scores.update(out[mine], target[mine], task_loss(info, out[mine], target[mine]))
    return {name: value.item() for name, value in scores.compute().items()}


def _classified(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    target = torch.randint(3, (count,), generator=generator)
    return torch.nn.functional.one_hot(target, 3) + torch.randn(count, 3, generator=generator).double(), target


@pytest.mark.parametrize("counts", [[11, 6], [17, 0], [0, 17]])
def test_named_metrics_over_ranks_are_those_of_all_samples(ranks: Pool, counts: list[int]) -> None:
    out, target = _classified(17)

    found = ranks.run(_named_scores, 2, counts)

    f1 = sklearn.metrics.f1_score(target, out.argmax(1), average="macro")
    auroc = sklearn.metrics.roc_auc_score(target, out.softmax(1), average="macro", multi_class="ovr")
    for values in found:
        assert [values["val/f1"], values["val/auroc"]] == pytest.approx([f1, auroc], rel=1e-6)  # fp32 in torchmetrics


def _correlation(rank: int, world_size: int, counts: list[int]) -> float:
    generator, info = torch.Generator().manual_seed(4), DataInfo("regression", 1, (5,))
    out, target = torch.randn(2, sum(counts), 1, generator=generator).double()
    mine = slice(sum(counts[:rank]), sum(counts[: rank + 1]))
    scores = Scores(info, "val", {"r": PearsonCorrCoef()})
    scores.update(out[mine], target[mine], task_loss(info, out[mine], target[mine]))
    return scores.compute()["val/r"].item()


def test_a_metric_whose_states_are_merged_by_itself_covers_all_ranks(ranks: Pool) -> None:
    out, target = torch.randn(2, 20, 1, generator=torch.Generator().manual_seed(4)).double()
    expected = torch.corrcoef(torch.stack([out, target]).squeeze(-1))[0, 1].item()

    for counts in ([13, 7], [20, 0]):
        assert ranks.run(_correlation, 2, counts) == pytest.approx([expected] * 2, rel=1e-5)


def test_named_metrics_are_logged_by_a_job(ranks: Pool, tmp_path: Path) -> None:
    f1 = named("torchmetrics.classification.MultilabelF1Score", num_labels=10)
    document = job(2, synthetic("multilabel"), **small(metrics={"f1": f1}))

    found = ranks.run(train, 2, str(tmp_path), document)

    assert found[0].metrics["val/f1"] == found[1].metrics["val/f1"]
    assert 0 < found[0].metrics["val/f1"] <= 1
    assert "train/f1" not in found[0].metrics


def _windowed_batches(rank: int, world_size: int, root: str, document: dict[str, Any]) -> int:
    own_tasks.Windows.calls = 0
    train(rank, world_size, root, document)
    return own_tasks.Windows.calls


def test_an_inferer_runs_validation_and_nothing_else(ranks: Pool, tmp_path: Path) -> None:
    windows = per_position(inferer=named(f"{OWN}.Windows", width=5))
    with_it = ranks.run(train, 2, str(tmp_path / "windows"), job(2, SCENES, **windows))[0]
    without = ranks.run(train, 2, str(tmp_path / "plain"), job(2, SCENES, **per_position()))[0]
    (calls,) = ranks.run(_windowed_batches, 1, str(tmp_path / "one"), job(1, SCENES, **windows))

    # A network that sees single positions gives the same in windows.
    assert all(torch.equal(with_it.state[name], without.state[name]) for name in without.state)
    assert with_it.metrics["val/mean_iou"] == pytest.approx(without.metrics["val/mean_iou"], rel=1e-6)
    assert calls == 1 + 2  # before training, and a batch in each of two epochs
