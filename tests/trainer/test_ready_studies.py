"""Every study in examples/studies, cut down: all its places train on a few samples, and its report is made.

The long form, on the digits and through the service, is in tests/stack/test_studies.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import save_file

from syncnorm.service.jobs.study_spec import Child, StudySpec, expand, read_study
from syncnorm.service.studies.collect import read_series
from syncnorm.service.studies.measures import Outcome
from syncnorm.service.studies.pictures import draw
from syncnorm.service.studies.report import as_html, as_json, make_report
from syncnorm.trainer.contract.spec import ModelSpec, NormSpec
from syncnorm.trainer.data import DataInfo
from syncnorm.trainer.models import build_model
from tests.helpers.norm.pool import Pool
from tests.helpers.paths import EXAMPLES
from tests.helpers.trainer.ranks import train_many

STUDIES = sorted((EXAMPLES / "studies").glob("*.yaml"))
SMALL = {"resnet": {"depth": 8}, "cnn": {"channels": [4, 4]}}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file in place of the trained job that a study starts from."""
    model = ModelSpec(name="resnet", init_args=SMALL["resnet"])
    network = build_model(model, NormSpec(), DataInfo("classification", 10, (1, 8, 8)))
    file = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    save_file(network.state_dict(), file)
    return str(file)


def starting_from(axis: Any, weights: str) -> Any:
    """The values of an axis, with a file in place of the job that model.init_from names."""
    if isinstance(axis, dict):
        if "job" in axis:
            return {"file": weights, "drop": axis["drop"]}
        return {name: starting_from(value, weights) for name, value in axis.items()}
    return [starting_from(value, weights) for value in axis] if isinstance(axis, list) else axis


def cut_down(path: Path, weights: str) -> StudySpec:
    """One seed, one epoch of 64 samples of the digits' shape, small networks."""
    document: dict[str, Any] = yaml.safe_load(path.read_text())
    base = document["base"]
    document["seeds"] = [0]
    base["train"] = {"epochs": 1}
    base["data"] |= {"name": "synthetic", "init_args": {"shape": [1, 8, 8], "samples": 64, "val_samples": 32}}
    base["model"].setdefault("init_args", {}).update(SMALL.get(base["model"]["name"], {}))
    document["grid"] = starting_from(document["grid"], weights)
    return read_study(document)


def outcome(child: Child, folder: Path, scores: dict[str, float] | None) -> Outcome:
    failed = {"state": "failed", "reason": "non_finite"} if scores is None else {"state": "succeeded"}
    values = {f"{by}/{name}": value for by in ("running", "population") for name, value in (scores or {}).items()}
    series = read_series([str(folder)])
    return Outcome(
        child.number, "job", child.spec.name, child.point, child.seed, values=values, series=series, **failed
    )


def test_there_are_ten() -> None:
    assert len(STUDIES) == 10


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_ready_study_runs_and_reports(path: Path, ranks: Pool, tmp_path: Path, weights: str) -> None:
    study = cut_down(path, weights)
    children = expand(study)
    folders = [tmp_path / str(child.number) for child in children]
    documents = [child.spec.model_dump(mode="json") for child in children]

    workers = max(child.spec.resources.workers for child in children)
    scores, *_ = ranks.run(train_many, workers, [str(folder) for folder in folders], documents)

    report = make_report(
        "study", study, "finished", [outcome(*each) for each in zip(children, folders, scores, strict=True)]
    )
    findings = as_json(report)["findings"]
    # Of one seed a claim is agreed with by no interval; but every number it asks for is there.
    assert [one["verdict"] for one in findings if one["difference"] is None] == []
    assert len(findings) == len(study.claims) >= 2
    pictures = draw(study, report.rows)
    assert set(pictures) == {"comparison", "curves", "heat_map"}
    assert study.source.split()[0] in as_html(report, pictures)


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_ready_study_has_three_seeds_its_source_and_what_was_measured(path: Path) -> None:
    text = path.read_text()
    study = read_study(yaml.safe_load(text))

    assert len(study.seeds) >= 3
    assert study.name == path.stem
    assert study.source
    assert study.expects
    assert "# Measured" in text
