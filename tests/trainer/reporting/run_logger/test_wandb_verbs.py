"""What modules written for wandb call. Its media are stand-ins with as much of wandb 0.31 as we touch."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch.loggers import WandbLogger
from PIL import Image

from syncnorm.trainer.reporting.run_logger.artifact_paths import image_path
from syncnorm.trainer.reporting.run_logger.lightning_logger import RunLogger
from syncnorm.trainer.reporting.run_logger.wandb_verbs import NOT_TAKEN
from tests.trainer.reporting.run_logger.conftest import RUN_ID
from tests.trainer.reporting.run_logger.contents import entries, files, metrics


@dataclass
class Picture:
    """wandb.Image"""

    image: Image.Image = field(default_factory=lambda: Image.new("RGB", (4, 4)))
    _caption: str | None = None
    _masks: dict[str, Any] | None = None
    _boxes: dict[str, Any] | None = None


@dataclass
class Rows:
    """wandb.Table"""

    columns: list[str]
    data: list[list[Any]]


def images(key: str, step: int = 7, count: int = 1) -> set[str]:
    ends = (".png", "+compressed.webp")
    return {f"{image_path(key, step, index)}{end}" for index in range(count) for end in ends}


def test_numbers_are_metrics(run_logger: RunLogger, artifacts: Path) -> None:
    assert isinstance(run_logger, WandbLogger)

    run_logger.experiment.log({"loss": torch.tensor(0.5), "val": {"acc": 1, "at": {"0.5": 2}}}, step=3)
    run_logger.experiment.log({"loss": 0.25}, commit=False)

    assert metrics(artifacts) == [("loss", 3, 0.5), ("val/acc", 3, 1.0), ("val/at/0.5", 3, 2.0), ("loss", 7, 0.25)]


def test_pictures_of_one_key_lie_side_by_side_and_their_captions_are_kept(
    run_logger: RunLogger, artifacts: Path
) -> None:
    run_logger.experiment.log(
        {
            "examples": [Picture(_caption="cat"), Picture(), Picture(_caption="dog")],
            "val": {"one": Picture()},
            "pil": Image.new("L", (2, 2)),
            "figure": plt.figure(),
            "pyplot": plt,
        },
        step=3,
    )
    plt.close("all")

    captions = "logged/text/examples/captions/step-00000003.txt"
    found = images("examples", 3, 3).union(*(images(key, 3) for key in ("val/one", "pil", "figure", "pyplot")))
    assert set(files(artifacts)) == found | {captions}
    assert (artifacts / captions).read_text() == "cat\n\ndog"


@pytest.mark.parametrize("overlay", [{"_masks": {"p": {}}}, {"_boxes": {"p": {}}}])
def test_what_is_drawn_over_a_picture_is_said_to_be_lost(
    run_logger: RunLogger, artifacts: Path, caplog: pytest.LogCaptureFixture, overlay: dict[str, Any]
) -> None:
    run_logger.experiment.log({"examples": [Picture(**overlay)]})

    assert set(files(artifacts)) == images("examples")
    assert "left out of the MLflow run: masks and boxes of examples. The image is in the run without" in caplog.text


@pytest.mark.parametrize(
    "table",
    [
        Rows(["a", "b"], [[1, "x"], [2, "y"]]),
        SimpleNamespace(table=Rows(["a", "b"], [[1, "x"], [2, "y"]]), spec={}),  # what wandb.plot makes
        pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}),
    ],
)
def test_tables_and_charts_are_tables(run_logger: RunLogger, artifacts: Path, table: Any) -> None:
    run_logger.experiment.log({"val": {"table": table}})

    assert json.loads((artifacts / "val" / "table.json").read_text()) == {
        "columns": ["a", "b"],
        "data": [[1, "x"], [2, "y"]],
    }


def test_histograms_of_values_and_of_counts(run_logger: RunLogger, artifacts: Path) -> None:
    counts, edges = np.histogram([0.0, 1.0, 1.0, 2.0], 2)

    run_logger.experiment.log(
        {
            "counted": SimpleNamespace(histogram=counts.tolist(), bins=edges.tolist()),
            "tensor": torch.tensor([0.0, float("nan")]),
            "array": np.zeros((2, 2)),
        }
    )

    kept = {
        key: json.loads((artifacts / f"logged/histograms/{key}/step-00000007.json").read_text())
        for key in ("counted", "tensor", "array")
    }
    # One value of four lies in the first bin, so its center counts once, and that of the second three times.
    assert kept["counted"] == {
        "counts": [1, 3],
        "edges": [0, 1, 2],
        "mean": 1.25,
        "std": pytest.approx(np.std([0.5, 1.5, 1.5, 1.5])),
        "count": 4,
        "non_finite": 0,
    }
    assert (kept["tensor"]["count"], kept["tensor"]["non_finite"], kept["array"]["count"]) == (2, 1, 4)
    assert images("counted") <= set(files(artifacts))


@pytest.mark.parametrize("value", [None, [1, 2], [Picture(), 1], object(), []])
def test_anything_else_is_said_to_be_lost(
    run_logger: RunLogger, artifacts: Path, caplog: pytest.LogCaptureFixture, value: Any
) -> None:
    run_logger.experiment.log({"what": value, "loss": 1.0})

    assert f"left out of the MLflow run: log of what. It is a {type(value).__name__}" in caplog.text
    assert metrics(artifacts) == [("loss", 7, 1.0)]


def test_texts_and_files(run_logger: RunLogger, artifacts: Path) -> None:
    run = run_logger.experiment
    folder = Path(run.dir)
    for name in ("a.txt", "b.txt", "c.csv"):
        (folder / name).write_text(name)

    run.log({"note": "hello"})
    run.save(f"{run.dir}/*.txt")
    run.save(folder / "c.csv", policy="now")

    assert files(artifacts) == ["a.txt", "b.txt", "c.csv", "logged/text/note/step-00000007.txt"]
    assert run.dir == run.log_dir == run.get_logdir() == run_logger.log_dir
    assert run.id == RUN_ID


def test_config_becomes_params_and_the_summary_metrics(run_logger: RunLogger, artifacts: Path) -> None:
    run = run_logger.experiment

    run.config.update({"lr": 0.1}, allow_val_change=True)
    run.config.update(SimpleNamespace(width=4))
    run.config["depth"] = 3
    run.config.act = "relu"
    run.summary["best"] = 0.5
    run.summary.update({"last": torch.tensor(0.25)})

    assert entries(artifacts, "param") == {"lr": "0.1", "width": "4", "depth": "3", "act": "relu"}
    assert metrics(artifacts) == [("best", 7, 0.5), ("last", 7, 0.25)]


@pytest.mark.parametrize("name", NOT_TAKEN)
def test_verbs_without_a_form_are_counted(run_logger: RunLogger, caplog: pytest.LogCaptureFixture, name: str) -> None:
    getattr(run_logger.experiment, name)("x", of="anything")

    assert f"left out of the MLflow run: {name}." in caplog.text


def test_artifact_without_a_path_is_counted(run_logger: RunLogger, caplog: pytest.LogCaptureFixture) -> None:
    run_logger.experiment.log_artifact(object())

    assert "left out of the MLflow run: file object. It must be given by its path" in caplog.text


@pytest.mark.parametrize("end", [lambda run: run.finish(exit_code=0), lambda run: run.unwatch()])
def test_a_run_needs_no_end(run_logger: RunLogger, artifacts: Path, end: Callable[[Any], None]) -> None:
    end(run_logger.experiment)

    assert not artifacts.exists()
