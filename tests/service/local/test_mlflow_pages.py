"""MLflow's pages in a real browser: model training first, our columns, and scores before curves of single layers."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from syncnorm.service.integrations.mlflow_experiment import run_page, runs_page
from syncnorm.service.integrations.mlflow_runs import MlflowTracker, Run
from syncnorm.service.jobs.admission import new_job
from syncnorm.service.jobs.study import Study
from syncnorm.service.local.programs import local_mlflow
from syncnorm.service.studies.runs import MlflowStudyRuns
from syncnorm.trainer.contract.mlflow_rest import layer_metric, system_metric
from syncnorm.trainer.contract.spec_reader import read_spec
from tests.helpers import chromium
from tests.helpers.chromium import Browser, Page, needs_chromium
from tests.helpers.fakes import Clock
from tests.helpers.service.api import SPEC
from tests.service.conftest import eventually

pytestmark = [needs_chromium, pytest.mark.timeout(400)]
WIDTH, HEIGHT = 1440, 900


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowTracker]:
    with (
        local_mlflow(tmp_path_factory.mktemp("mlflow"), preferred_port=0) as (_, uri),
        closing(MlflowTracker(uri)) as made,
    ):
        eventually(made.is_answering)
        yield made


@pytest.fixture(scope="module", params=[13, 53])
def run(mlflow: MlflowTracker, request: pytest.FixtureRequest) -> Run:
    """A run of a network with so many normalization layers."""
    layers: int = request.param
    job = new_job(read_spec({**SPEC, "name": f"layers-{layers}", "project": f"project-{layers}"}), "ann", Clock()())
    made = mlflow.run_for(job, [], "note")
    mlflow.describe(made.run_id, replace(job, run_id=made.run_id), [])
    for step in range(10, 60, 10):
        values = dict.fromkeys(("val/loss", "train/loss", "norm/drift/max", "norm/sync_share", "lr"), 1 / step)
        values |= {"val/accuracy": 1 - 1 / step, "throughput/samples_per_s": 500.0 + step}
        values |= {system_metric(rank, "cpu_utilization_percentage"): 90.0 + rank for rank in range(2)}
        for layer in range(layers):
            values |= {layer_metric(f"layer{layer}.bn", what): math.sin(step + layer) for what in ("drift", "x", "y")}
        metrics = [{"key": key, "value": value, "step": step, "timestamp": step} for key, value in values.items()]
        mlflow.call("POST", "runs/log-batch", {"run_id": made.run_id, "metrics": metrics})
    return made


@pytest.fixture
def browser() -> Iterator[Browser]:
    with chromium.browser() as found:
        yield found


def window(page: Page) -> Page:
    page.call("Emulation.setDeviceMetricsOverride", width=WIDTH, height=HEIGHT, deviceScaleFactor=1, mobile=False)
    return page


TEXT = r"document.body.innerText.replace(/\s+/g, ' ')"
"""The text of a page, in one line."""


def has_text(text: str) -> str:
    return f"{TEXT}.includes({text!r})"


def require_drawn(page: Page) -> None:
    png = page.picture(WIDTH, HEIGHT)
    assert len(np.unique(np.asarray(Image.open(io.BytesIO(png)).convert("L"))[::3, ::3])) > 50


def test_experiment_opens_as_model_training(mlflow: MlflowTracker, run: Run, browser: Browser) -> None:
    with browser.page() as page:
        window(page).open(f"{mlflow.uri}/#/experiments/{run.experiment_id}")
        page.wait_for(has_text("Model registry"))
        page.wait_for("location.href.includes('workflowType=machine_learning')")

        assert not page.run(has_text("Judges"))
        assert not page.run(has_text("Summarize"))
        require_drawn(page)


def test_view_has_columns_that_people_want(mlflow: MlflowTracker, run: Run, browser: Browser) -> None:
    with browser.page() as page:
        window(page).open(runs_page(mlflow.uri, run.experiment_id))

        page.wait_for(has_text("val/accuracy"))
        page.wait_for(has_text("0.98"))
        page.wait_for(has_text("sync_batch"))
        require_drawn(page)


def test_accuracy_is_seen_without_scrolling_before_any_layer(mlflow: MlflowTracker, run: Run, browser: Browser) -> None:
    curve = "document.querySelector('.js-plotly-plot .scatterlayer .trace')"
    with browser.page() as page:
        window(page).open(runs_page(mlflow.uri, run.experiment_id, charts=True))
        page.wait_for(has_text("z_norm_layers/layer0.bn ("))
        page.wait_for(curve)

        assert page.run(f"{curve}.getBoundingClientRect().bottom") < HEIGHT
        text = page.run(TEXT)
        assert text.index("val/accuracy") < text.index("train/loss")
        sections = [text.index(f" {name} (") for name in ("val", "train", "throughput", "norm")]
        assert sections == sorted(sections)
        assert text.index("z_norm_layers/layer0.bn (") > sections[-1]
        require_drawn(page)


def test_curves_of_a_study_are_those_of_its_jobs_in_the_order_of_its_grid(
    mlflow: MlflowTracker, browser: Browser
) -> None:
    study = Study("study_1", "kinds", "project-of-a-study", "ann", {"grid": {}, "seeds": []}, Clock()())
    runs = MlflowStudyRuns(mlflow)
    parent = runs.run_for_study(study)
    for number in (2, 1, 3):
        spec = read_spec({**SPEC, "name": f"kinds-00{number}", "project": study.project})
        job = replace(new_job(spec, "ann", Clock()()), labels={"study": study.id})
        made = mlflow.run_for(job, [], "note")
        mlflow.describe(made.run_id, replace(job, run_id=made.run_id), [])
        runs.group(made.run_id, parent.run_id)
        for step in (10, 20):
            metric = {"key": "val/accuracy", "value": number / step, "step": step, "timestamp": step}
            mlflow.call("POST", "runs/log-batch", {"run_id": made.run_id, "metrics": [metric]})

    with browser.page() as page:
        window(page).open(runs_page(mlflow.uri, parent.experiment_id, charts=True, view=study.id))
        page.wait_for(has_text("kinds-003"))
        page.wait_for("document.querySelectorAll('.js-plotly-plot .scatterlayer .trace').length >= 3")

        text = page.run(TEXT)
        assert "3 matching runs" in text
        assert text.index("kinds-001") < text.index("kinds-002") < text.index("kinds-003")
        assert text.index("val/accuracy") < text.index("train (0)")
        require_drawn(page)


def test_own_page_of_a_run_has_layers_last_and_system_metrics(
    mlflow: MlflowTracker, run: Run, browser: Browser
) -> None:
    url = run_page(mlflow.uri, run.experiment_id, run.run_id)
    assert url is not None
    path, _, query = url.partition("?")
    with browser.page() as page:
        window(page).open(f"{path}/model-metrics?{query}")
        page.wait_for(has_text("z_norm_layers/layer0.bn ("))
        text = page.run(TEXT)
        page.open(f"{path}/system-metrics?{query}")
        page.wait_for(has_text("system/node_1 ("))

    assert text.index("val (2)") < text.index("z_norm_layers/layer0.bn (")
