"""Lightning's own Trainer logs through RunLogger as through any of its loggers."""

from __future__ import annotations

import warnings
from argparse import Namespace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger
from torch import nn

from syncnorm.trainer.reporting.run_logger.artifact_paths import image_path
from syncnorm.trainer.reporting.run_logger.lightning_logger import RunLogger
from tests.trainer.reporting.run_logger.conftest import RUN_ID
from tests.trainer.reporting.run_logger.contents import entries, files, metrics


class Everyday(BoringModel):
    """Logs as people do, in the hooks where they do it."""

    def __init__(self, lr: float = 0.1, net: dict[str, Any] | None = None, seed: int = 3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.configured = (lr, net, seed)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> Any:
        if batch_idx == 0:
            self.logger.experiment.add_image("x", batch.reshape(-1, 1, 32)[:1].repeat(3, 8, 1), self.current_epoch)
            self.logger.experiment.log_text("hello")
        loss = super().training_step(batch, batch_idx)
        self.log("train_loss", loss["loss"], on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> Any:
        out = super().validation_step(batch, batch_idx)
        self.log("val_loss", out["x"])
        return out

    def on_validation_epoch_end(self) -> None:
        for name, parameter in self.named_parameters():
            self.logger.experiment.add_histogram(name, parameter, self.current_epoch)
        self.logger.experiment.add_scalars("both", {"a": torch.tensor(1.0), "b": 2}, self.global_step)


def fit(logger: RunLogger, module: pl.LightningModule, folder: Path, **options: Any) -> pl.Trainer:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice about workers and logging
        trainer = pl.Trainer(
            logger=logger,
            max_epochs=2,
            limit_train_batches=4,
            limit_val_batches=2,
            log_every_n_steps=2,
            num_sanity_val_steps=0,
            accelerator="cpu",
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            **{"enable_checkpointing": False, **options},
        )
        trainer.fit(module)
    return trainer


def test_trainer_logs_metrics_params_and_files(run_logger: RunLogger, artifacts: Path, tmp_path: Path) -> None:
    module = Everyday(net={"depth": 2, "blocks": [{"width": 8}]})

    fit(run_logger, module, tmp_path, callbacks=[LearningRateMonitor()])

    points = metrics(artifacts)
    assert [(key, step) for key, step, _ in points if key == "train_loss_step"] == [
        ("train_loss_step", step) for step in (1, 3, 5, 7)
    ]
    assert {"train_loss_epoch", "val_loss", "lr-SGD", "epoch", "both/a", "both/b"} <= {key for key, _, _ in points}
    assert len({(key, step) for key, step, _ in points}) == len(points)
    assert entries(artifacts, "param") == {
        "lr": "0.1",
        "net/depth": "2",
        "net/blocks/0/width": "8",
        "hparams/seed": "3",
    }
    kept = files(artifacts)
    images = [f"{image_path('x', epoch)}{end}" for epoch in (0, 1) for end in ("+compressed.webp", ".png")]
    assert [name for name in kept if name.startswith("images/x+step+")] == images
    assert [name for name in kept if name.startswith("logged/text")] == ["logged/text/text/step-00000007.txt"]
    assert "logged/histograms/layer.weight/step-00000001.json" in kept
    assert entries(artifacts, "tag")["mlflow.loggedImages"] == "True"


def test_callbacks_write_below_the_attempt(run_logger: RunLogger, artifacts: Path, tmp_path: Path) -> None:
    trainer = fit(run_logger, Everyday(), tmp_path, callbacks=[ModelCheckpoint()], enable_checkpointing=True)

    written = Path(trainer.checkpoint_callback.best_model_path)
    assert written.is_relative_to(artifacts.parent / "lightning" / "team_demo" / RUN_ID / "checkpoints")
    assert Path(trainer.log_dir).is_dir()
    assert trainer.log_dir == run_logger.log_dir
    (Path(run_logger.log_dir) / "mine.json").write_text("{}")
    assert files(artifacts)


def test_modules_find_the_logger_they_ask_for(run_logger: RunLogger) -> None:
    assert isinstance(run_logger, MLFlowLogger)
    assert isinstance(run_logger, TensorBoardLogger)
    assert run_logger.run_id == run_logger.version == RUN_ID
    assert run_logger.name == "team_demo"


def test_other_ranks_write_nothing(run_logger: RunLogger, artifacts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)

    run_logger.log_metrics({"a": 1.0}, 1)
    run_logger.log_hyperparams({"a": 1})
    run_logger.log_image("a", [np.zeros((4, 4))])
    run_logger.log_text("a")
    run_logger.log_table("a", ["b"], [[1]])
    run_logger.watch(nn.Linear(1, 1))
    run_logger.experiment.add_image("a", torch.zeros(3, 4, 4))
    run_logger.experiment.log_text("x")
    run_logger.experiment.any_verb_at_all()
    run_logger.finalize("success")

    assert metrics(artifacts) == []
    assert not artifacts.exists()


@pytest.mark.parametrize(
    "value", ["high", b"1", None, torch.zeros(3), np.zeros((2, 2)), [1.0], {"inner": object()}, 1j]
)
def test_metric_that_is_no_number_is_refused_by_name(run_logger: RunLogger, artifacts: Path, value: Any) -> None:
    with pytest.raises(ValueError, match=r"a metric must be one number; got .* for 'val/x"):
        run_logger.log_metrics({"val/x": value}, 1)
    assert metrics(artifacts) == []


def test_numbers_of_any_library_are_recorded_infinite_ones_too(run_logger: RunLogger, artifacts: Path) -> None:
    weight = nn.Parameter(torch.tensor([2.0]))
    values = {"t": weight, "n": np.float32(0.5), "b": True, "i": np.int64(3), "inf": float("inf"), "nested": {"a": 1}}

    run_logger.log_metrics(values, torch.tensor(4))

    expected = [("t", 2.0), ("n", 0.5), ("b", 1.0), ("i", 3.0), ("inf", float("inf")), ("nested/a", 1.0)]
    assert metrics(artifacts) == [(name, 4, value) for name, value in expected]


def test_metric_gets_a_name_that_mlflow_takes_and_the_log_says_so(
    run_logger: RunLogger, artifacts: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")

    for step in range(3):
        run_logger.log_metrics({"IoU@0.5 (val)": 1.0}, step)

    assert [key for key, _, _ in metrics(artifacts)] == ["IoU_0.5 _val_"] * 3
    assert caplog.text.count("'IoU@0.5 (val)'") == 1


def test_second_value_at_a_step_is_said_to_be_lost(
    run_logger: RunLogger, artifacts: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for value in (1.0, 2.0, 3.0):
        run_logger.log_metrics({"loss": value, "epoch": 0}, 5)

    assert metrics(artifacts) == [("loss", 5, 1.0), ("epoch", 5, 0.0)]
    assert caplog.text.count("metric loss. It has several values at step 5") == 1
    assert "epoch" not in caplog.text


def test_long_param_is_cut_and_no_param_changes(
    run_logger: RunLogger, artifacts: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_logger.log_hyperparams(Namespace(lr=0.1, names="x" * 7000, model="mine", optimizer="adam", fn=print))
    run_logger.log_hyperparams({"lr": 0.2, "train.epochs": 3, "name": "n", 5: None})

    params = entries(artifacts, "param")
    assert params["lr"] == "0.1"
    assert len(params["names"]) == 6000
    assert (params["model"], params["optimizer"], params["5"]) == ("mine", "adam", "None")
    assert (params["hparams/train.epochs"], params["hparams/name"]) == ("3", "n")
    assert "param names. It is cut to 6000 of 7000 characters" in caplog.text
    assert "param lr. It has a value already, which can't be changed: 0.1" in caplog.text


def test_hyperparams_with_metrics_as_for_tensorboard(run_logger: RunLogger, artifacts: Path) -> None:
    run_logger.log_hyperparams({"lr": 1}, {"hp/loss": 0})
    run_logger.experiment.add_hparams({"width": 8}, {"hp/acc": 0.5}, global_step=3)

    assert metrics(artifacts) == [("hp/loss", 0, 0.0), ("hp/acc", 3, 0.5)]
    assert entries(artifacts, "param") == {"lr": "1", "width": "8"}


def test_thousands_of_params_don_t_fail_training(run_logger: RunLogger, artifacts: Path) -> None:
    run_logger.log_hyperparams({f"p{number}": number for number in range(3000)})
    run_logger.finalize("success")

    assert len(entries(artifacts, "param")) == 1000
    assert entries(artifacts, "tag")["syncnorm.not_logged"] == "params 2000 times"


def test_verbs_of_wandb_are_honoured_or_said_to_be_lost(
    run_logger: RunLogger, artifacts: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_logger.watch(nn.Linear(1, 1), log="all")
    run_logger.log_image("val/two", images=[torch.zeros(3, 4, 4), np.zeros((4, 4))], caption=["first", "second"])
    run_logger.log_text("samples", columns=["in", "out"], data=[["a", "b"], ["c", "d"]])
    run_logger.log_text("just a text")
    run_logger.finalize("success")

    kept = files(artifacts)
    assert len([name for name in kept if name.startswith("images/val~two+step+7")]) == 4
    assert (artifacts / "logged/text/val/two/captions/step-00000007.txt").read_text() == "first\nsecond"
    assert (artifacts / "samples.json").read_text() == '{"columns": ["in", "out"], "data": [["a", "b"], ["c", "d"]]}'
    assert (artifacts / "logged/text/text/step-00000007.txt").read_text() == "just a text"
    assert "watch. Set diagnostics: [gradient_histograms]" in caplog.text
