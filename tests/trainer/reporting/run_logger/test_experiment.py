"""The verbs of MLflow's client and of TensorBoard's writer, in the forms in which public modules call them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from PIL import Image

from syncnorm.trainer.reporting.run_logger.artifact_paths import image_path
from syncnorm.trainer.reporting.run_logger.lightning_logger import RunLogger
from syncnorm.trainer.reporting.run_logger.mlflow_verbs import NOT_KEPT, OF_THE_SERVICE
from syncnorm.trainer.reporting.run_logger.tensorboard_verbs import NOT_SHOWN
from tests.trainer.reporting.run_logger.conftest import RUN_ID
from tests.trainer.reporting.run_logger.contents import entries, files, metrics


def pixels(artifacts: Path, key: str, step: int, index: int = 0) -> Any:
    with Image.open(artifacts / f"{image_path(key, step, index)}.png") as image:
        return np.asarray(image)


def test_metrics_with_and_without_a_run_id(run_logger: RunLogger, artifacts: Path) -> None:
    verbs, now_ms = run_logger.experiment, int(time.time() * 1000)

    verbs.log_metric(RUN_ID, "a", 1.0, now_ms, 1)
    verbs.log_metric(RUN_ID, "a", 2.0, step=2)
    verbs.log_metric(run_id=RUN_ID, key="a", value=3.0, timestamp=5000, step=3)
    verbs.log_metric("a", 4.0, 4)
    verbs.log_metric(RUN_ID, "a", 7.0)
    verbs.log_metrics({"b": 1.0}, step=1)
    verbs.log_batch(RUN_ID, [Metric("c", 1.0, now_ms, 5)], [Param("p", "1")], [RunTag("t", "2")])
    verbs.add_scalar("d", torch.tensor(1.0), 2)
    verbs.add_scalar("d", 1, global_step=3, walltime=5.0)

    assert metrics(artifacts) == [
        *[("a", step, float(step)) for step in (1, 2, 3, 4, 7)],
        ("b", 1, 1.0),
        ("c", 5, 1.0),
        ("d", 2, 1.0),
        ("d", 3, 1.0),
    ]
    assert (entries(artifacts, "param"), entries(artifacts, "tag")) == ({"p": "1"}, {"t": "2"})
    times = [json.loads(line)["timestamp"] for line in (artifacts.parent / "metrics.jsonl").read_text().splitlines()]
    assert (times[0], times[2], times[-1]) == (now_ms, 5000, 5000)


def test_params_and_tags(run_logger: RunLogger, artifacts: Path, caplog: pytest.LogCaptureFixture) -> None:
    verbs = run_logger.experiment

    verbs.log_param(RUN_ID, "p", 1)
    verbs.log_params({"q": None})
    verbs.set_tag(RUN_ID, "best", 0.5)
    verbs.set_tag("best", 0.7)
    verbs.set_tags({"who": "me"})
    verbs.set_tag(RUN_ID, "syncnorm.job_id", "job_of_another")

    assert entries(artifacts, "param") == {"p": "1", "q": "None"}
    assert entries(artifacts, "tag") == {"best": "0.7", "who": "me"}
    assert "tag syncnorm.job_id. Tags that begin with syncnorm. belong to the service" in caplog.text


def test_files_go_where_their_names_say(run_logger: RunLogger, artifacts: Path, tmp_path: Path) -> None:
    verbs = run_logger.experiment
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "a.csv").write_text("1")
    (tmp_path / "b.txt").write_text("2")

    verbs.log_artifact(RUN_ID, str(tmp_path / "b.txt"))
    verbs.log_artifact(local_path=tmp_path / "b.txt", artifact_path="kept", run_id=RUN_ID)
    verbs.log_artifacts(RUN_ID, str(tmp_path / "report"), "results")
    verbs.log_text(RUN_ID, "text", "notes/a.txt")
    verbs.log_dict(RUN_ID, {"a": [1, float("nan")]}, "config.json")
    verbs.log_dict({"a": 1}, "config.yaml")
    (tmp_path / "b.txt").write_text("changed later")

    assert files(artifacts) == ["b.txt", "config.json", "config.yaml", "kept/b.txt", "notes/a.txt", "results/a.csv"]
    assert (artifacts / "b.txt").read_text() == "2"
    assert json.loads((artifacts / "config.json").read_text()) == {"a": [1, "NaN"]}


def test_missing_file_is_said_to_be_lost(run_logger: RunLogger, caplog: pytest.LogCaptureFixture) -> None:
    run_logger.experiment.log_artifact(RUN_ID, "model_checkpoint.pt")

    assert "file model_checkpoint.pt. It must be a file or folder that exists when it is logged" in caplog.text


def test_verbs_without_a_name_are_kept_by_step(run_logger: RunLogger, artifacts: Path) -> None:
    verbs = run_logger.experiment

    verbs.log_text("x")
    verbs.log_dict({"a": 1})
    verbs.log_image(np.zeros((2, 2)))
    verbs.log_figure(plt.figure())
    plt.close("all")

    assert files(artifacts) == sorted(
        [
            *(f"{image_path(key, 7)}{end}" for key in ("figure", "image") for end in (".png", "+compressed.webp")),
            "logged/dict/dict/step-00000007.json",
            "logged/text/text/step-00000007.txt",
        ]
    )


@pytest.mark.parametrize(
    ("layout", "shape"), [("CHW", (3, 4, 5)), ("HWC", (4, 5, 3)), ("HW", (4, 5)), ("WH", (5, 4)), ("chw", (1, 4, 5))]
)
def test_image_of_any_layout(run_logger: RunLogger, artifacts: Path, layout: str, shape: tuple[int, ...]) -> None:
    image = torch.rand(shape)

    run_logger.experiment.add_image("x", image, 3, dataformats=layout)

    assert pixels(artifacts, "x", 3).shape == ((4, 5, 3) if 3 in shape else (4, 5))


def test_pixels_are_those_of_tensorboard(run_logger: RunLogger, artifacts: Path) -> None:
    rows = torch.tensor([[0.0, 0.5, 1.0, 1.5, -1.0, float("nan")]]).expand(3, 2, 6)

    run_logger.experiment.add_image("floats", rows, 0)
    run_logger.experiment.add_image("bytes", torch.tensor([[0, 100, 255]], dtype=torch.uint8).expand(3, 2, 3), 0)
    run_logger.experiment.add_image("mask", torch.tensor([[True, False]]), 0)

    assert pixels(artifacts, "floats", 0)[0, :, 0].tolist() == [0, 127, 255, 255, 0, 0]
    assert pixels(artifacts, "bytes", 0)[1, :, 2].tolist() == [0, 100, 255]
    assert pixels(artifacts, "mask", 0).tolist() == [[255, 0]]


def test_floats_beyond_one_are_stretched_as_by_mlflow(run_logger: RunLogger, artifacts: Path) -> None:
    run_logger.experiment.log_image(RUN_ID, np.array([[-1.0, 1.0], [0.0, 3.0]]), key="heat", step=2)

    assert pixels(artifacts, "heat", 2).tolist() == [[0, 127], [63, 255]]


def test_several_images_are_one_grid(run_logger: RunLogger, artifacts: Path) -> None:
    run_logger.experiment.add_images("batch", torch.rand(5, 3, 4, 4), 1)
    run_logger.experiment.add_images("list", [np.zeros((4, 4, 1))] * 2, 1, dataformats="NHWC")

    assert pixels(artifacts, "batch", 1).shape == (2 * 4 + 2, 3 * 4 + 2 * 2, 3)
    assert pixels(artifacts, "list", 1).shape == (4, 10)


def test_image_as_a_file_and_from_a_path(run_logger: RunLogger, artifacts: Path, tmp_path: Path) -> None:
    verbs = run_logger.experiment
    Image.new("RGBA", (4, 4), "red").save(tmp_path / "mine.png")

    verbs.log_image(RUN_ID, np.zeros((4, 4, 3), np.uint8), "plots/a.png")
    verbs.log_image(RUN_ID, image=Image.new("RGBA", (4, 4)), artifact_file="b.jpg")
    verbs.log_image("worst predictions", torch.zeros(3, 4, 4))
    verbs.log_image(str(tmp_path / "mine.png"), key="path", step=1)
    run_logger.log_image("one", str(tmp_path / "mine.png"), 2)

    assert {"plots/a.png", "b.jpg"} <= set(files(artifacts))
    assert (artifacts / "b.jpg").read_bytes().startswith(b"\xff\xd8")  # JPEG
    assert pixels(artifacts, "worst predictions", 7).shape == (4, 4, 3)
    assert pixels(artifacts, "path", 1).shape == pixels(artifacts, "one", 2).shape == (4, 4, 4)


@pytest.mark.parametrize("image", [torch.zeros(12, 4, 4), torch.zeros(0, 4, 4), "no/such/file.png", None, object()])
def test_what_is_no_image_is_lost_without_an_error(
    run_logger: RunLogger, artifacts: Path, caplog: pytest.LogCaptureFixture, image: Any
) -> None:
    run_logger.experiment.add_image("x", image, 1)
    run_logger.experiment.add_image("x", image, 2)

    assert not artifacts.exists()
    assert caplog.text.count("left out of the MLflow run: image x") == 1


class Plotly:
    """As much of a plotly figure as its users and we touch."""

    def write_html(self, file: Any, include_plotlyjs: str) -> None:
        file.write(f"<html>{include_plotlyjs}</html>")


def test_figures_in_all_their_forms(run_logger: RunLogger, artifacts: Path, caplog: pytest.LogCaptureFixture) -> None:
    verbs, (figure, axes) = run_logger.experiment, plt.subplots()
    axes.plot([1, 2])

    verbs.log_figure(RUN_ID, figure, "plots/roc.png")
    verbs.log_figure(figure=figure, artifact_file="plots/roc.pdf", run_id=RUN_ID, save_kwargs={"dpi": 50})
    verbs.log_figure("val_3", figure)
    verbs.log_figure(figure=figure, figure_name="val_4", step=2)
    verbs.log_figure(RUN_ID, Plotly(), "traces/1.html")
    verbs.log_figure(RUN_ID, Plotly(), "traces/2.png")
    verbs.add_figure("confusion", figure, 5)
    verbs.add_figure("several", [plt.figure(), plt.figure()], 5)
    verbs.add_figure("no figure", "x", 5)

    named = ["plots/roc.png", "plots/roc.pdf", "traces/1.html", "traces/2.png.html"]
    shown = [("val_3", 7), ("val_4", 2), ("confusion", 5), ("several/0", 5), ("several/1", 5)]
    ends = (".png", "+compressed.webp")
    assert files(artifacts) == sorted([*named, *(f"{image_path(*one)}{end}" for one in shown for end in ends)])
    assert plt.get_fignums() == []
    assert "figure traces/2.png. A figure of plotly is kept as a page" in caplog.text
    assert "figure no figure. ValueError: it must be a figure of matplotlib or plotly; got str" in caplog.text


def test_histogram_has_its_numbers_and_a_picture(run_logger: RunLogger, artifacts: Path) -> None:
    values = torch.tensor([0.0, 0.0, 1.0, 4.0, float("nan"), float("inf")], requires_grad=True)

    run_logger.experiment.add_histogram(tag="layer/weight", values=values, global_step=3)
    run_logger.experiment.add_histogram("few", [1.0, 2.0], 3, bins=[0, 1.5, 3])
    run_logger.experiment.add_histogram("empty", torch.zeros(0), 3)

    found = json.loads((artifacts / "logged/histograms/layer/weight/step-00000003.json").read_text())
    assert (sum(found["counts"]), found["count"], found["non_finite"], found["mean"]) == (4, 6, 2, 1.25)
    assert (found["edges"][0], found["edges"][-1]) == (0.0, 4.0)
    assert json.loads((artifacts / "logged/histograms/few/step-00000003.json").read_text())["counts"] == [1, 1]
    assert pixels(artifacts, "layer/weight", 3).shape == (160, 320, 3)


def test_texts_by_tag_and_step(run_logger: RunLogger, artifacts: Path) -> None:
    run_logger.experiment.add_text("val/sample", "über", 3)
    run_logger.experiment.add_text("val/sample", "later", 4)
    run_logger.experiment.add_text("no step", 5)

    assert files(artifacts) == [
        "logged/text/no step/step-00000007.txt",
        "logged/text/val/sample/step-00000003.txt",
        "logged/text/val/sample/step-00000004.txt",
    ]


def test_rows_of_a_table_add_up(run_logger: RunLogger, artifacts: Path) -> None:
    verbs = run_logger.experiment

    verbs.log_table(RUN_ID, {"word": ["a", "b"], "score": [0.5, float("inf")]}, "eval.json")
    verbs.log_table(RUN_ID, data=pd.DataFrame({"word": ["c"], "new": [1]}), artifact_file="eval.json")
    verbs.log_table(filename="p.csv", tabular_data=torch.tensor([[1, 2], [3, 4]]), headers=["id", "guess"])

    assert json.loads((artifacts / "eval.json").read_text()) == {
        "columns": ["word", "score", "new"],
        "data": [["a", 0.5, None], ["b", "Infinity", None], ["c", None, 1]],
    }
    assert (artifacts / "p.csv").read_text().split() == ["id,guess", "1,2", "3,4"]
    assert json.loads(entries(artifacts, "tag")["mlflow.loggedArtifacts"]) == [{"path": "eval.json", "type": "table"}]


@pytest.mark.parametrize("verb", [*NOT_SHOWN, *NOT_KEPT, *OF_THE_SERVICE])
def test_verb_without_a_form_is_named_once_and_counted(
    run_logger: RunLogger, artifacts: Path, caplog: pytest.LogCaptureFixture, verb: str
) -> None:
    for _ in range(3):
        getattr(run_logger.experiment, verb)("tag", object(), global_step=1)
    run_logger.finalize("success")

    assert caplog.text.count(f"left out of the MLflow run: {verb}.") == 1
    assert entries(artifacts, "tag")["syncnorm.not_logged"] == f"{verb} 3 times"


def test_no_verb_of_the_client_that_writes_to_a_run_is_forgotten(run_logger: RunLogger) -> None:
    of_runs = {name for name in dir(MlflowClient) if name.startswith("log_")} - {"log_model_params"}

    assert [name for name in sorted(of_runs) if not hasattr(run_logger.experiment, name)] == []


def test_unknown_verb_is_refused_by_name(run_logger: RunLogger) -> None:
    assert not hasattr(run_logger.experiment, "log_confusion_matrix")
    with pytest.raises(AttributeError, match="'log_confusion_matrix' is none of them"):
        run_logger.experiment.log_confusion_matrix([1], [2])


def test_run_of_another_is_named(run_logger: RunLogger, artifacts: Path, caplog: pytest.LogCaptureFixture) -> None:
    run_logger.experiment.log_text("f" * 32, "x", "a.txt")

    assert f"this was meant for {'f' * 32}" in caplog.text
    assert files(artifacts) == ["a.txt"]


@pytest.mark.parametrize("step", ["one", object(), float("nan"), torch.zeros(2)])
def test_step_that_is_no_number_is_refused(run_logger: RunLogger, step: Any) -> None:
    with pytest.raises(ValueError, match="a step must be a whole number"):
        run_logger.experiment.add_scalar("a", 1.0, step)


def test_negative_step_is_lost_and_said(
    run_logger: RunLogger, artifacts: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_logger.experiment.add_scalar("a", 1.0, -1)

    assert metrics(artifacts) == []
    assert "metric a. A step must be 0 to 2^53; got -1" in caplog.text
