"""What a real MLflow takes of a job: any names and values in a spec, deleted runs and experiments."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest

from syncnorm.service.backend_errors import RefusedError
from syncnorm.service.integrations.mlflow_run_facts import LEFT_OUT_TAG, MOST_PARAMS
from syncnorm.service.integrations.mlflow_runs import MlflowTracker
from syncnorm.service.jobs.job import Job
from syncnorm.service.local.programs import local_mlflow
from syncnorm.trainer.contract.spec_reader import read_spec
from tests.helpers.fakes import Clock
from tests.service.conftest import eventually


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowTracker]:
    with (
        local_mlflow(tmp_path_factory.mktemp("mlflow"), preferred_port=0) as (_, uri),
        closing(MlflowTracker(uri)) as made,
    ):
        eventually(made.is_answering)
        yield made


def job_of(init_args: dict[str, Any], **spec: Any) -> Job:
    from syncnorm.service.jobs.admission import new_job

    document = {
        "name": "job",
        "model": {"class_path": "a.B", "init_args": init_args},
        "data": {"class_path": "a.D", "batch_size": 4},
    }
    return new_job(read_spec({**document, "project": "names", **spec}), "ann", Clock()())


def logged(mlflow: MlflowTracker, run_id: str) -> tuple[dict[str, str], dict[str, str]]:
    """Params and tags."""
    data = mlflow.call("GET", "runs/get", {"run_id": run_id})["run"]["data"]
    params, tags = ({pair["key"]: pair["value"] for pair in data.get(what, [])} for what in ("params", "tags"))
    return params, tags


ODD_ARGUMENTS: dict[str, Any] = {
    "a(b)": 1,
    "person (adult)": 3,
    "x" * 250: 1,  # with the path before it longer than MLflow takes
    "..": 3,
    "../up": 3,
    "/lead": 4,
    "trail/": 5,
    "a//b": 6,
    ".": 7,
    "..dots": 7,
    "straße 東京": 8,
    "emoji 🙂": 9,
    "line\nbreak": 10,
    "quote'\"`": 11,
    "a.b": 12,
    "a": {"b": 13},
    "%s{}\\": 14,
    "long": "y" * 20_000,
    "nested": {"deep": {"(x)": {"y": [1, float("nan") and 2]}}},
    "null": None,
    "empty": {},
}


def test_run_takes_every_argument_under_a_name_of_its_own(mlflow: MlflowTracker) -> None:
    job = job_of(ODD_ARGUMENTS)
    run_id = mlflow.run_for(job, [], "note").run_id

    lost, again = mlflow.describe(run_id, job, []), mlflow.describe(run_id, job, [])

    params, _ = logged(mlflow, run_id)
    arguments = {name: value for name, value in params.items() if name.startswith("model.init_args")}
    assert (lost, again) == ([], [])
    assert len(arguments) == len(ODD_ARGUMENTS) - 1  # one is null
    assert arguments["model.init_args.a_b_"] == "1"
    assert {arguments["model.init_args.a.b"], arguments["model.init_args.a.b 2"]} == {"12", "13"}
    assert arguments["model.init_args.long"].endswith("… [cut: 20000 characters in all]")


def test_run_of_a_huge_spec_says_how_much_is_elsewhere(mlflow: MlflowTracker) -> None:
    job = job_of({f"class {i}": i for i in range(5000)})
    run_id = mlflow.run_for(job, [], "note").run_id

    assert mlflow.describe(run_id, job, []) == []

    params, tags = logged(mlflow, run_id)
    assert len(params) == MOST_PARAMS
    assert tags[LEFT_OUT_TAG].endswith("of the spec's values are in the artifact spec.yaml only.")


def test_param_that_has_another_value_already_is_told_and_costs_no_other(mlflow: MlflowTracker) -> None:
    job = job_of({"a": 1})
    run_id = mlflow.run_for(job, [], "note").run_id
    mlflow.call("POST", "runs/log-batch", {"run_id": run_id, "params": [{"key": "seed", "value": "77"}]})

    lost = mlflow.describe(run_id, job, [])

    params, _ = logged(mlflow, run_id)
    assert lost == ["seed"]
    assert (params["seed"], params["model.init_args.a"]) == ("77", "1")


def tags_of_experiment(mlflow: MlflowTracker, experiment_id: str) -> dict[str, str]:
    found = mlflow.call("GET", "experiments/get", {"experiment_id": experiment_id})["experiment"]
    return {tag["key"]: tag["value"] for tag in found.get("tags", [])}


def test_experiment_is_tagged_as_model_training_with_a_view(mlflow: MlflowTracker) -> None:
    made = mlflow.run_for(job_of({}, project="viewed"), [], "note").experiment_id

    tags = tags_of_experiment(mlflow, made)

    assert tags["mlflow.experimentKind"] == "custom_model_development"
    state = json.loads(json.loads(tags["mlflow.sharedViewState.syncnorm"])["state"])
    assert state["selectedColumns"][0] == "metrics.`val/accuracy`"
    assert {chart["metricSectionId"] for chart in state["compareRunCharts"]} == {
        section["uuid"] for section in state["compareRunSections"]
    }


def test_view_is_added_to_an_earlier_experiment_once(mlflow: MlflowTracker) -> None:
    made = mlflow.call("POST", "experiments/create", {"name": "earlier"})["experiment_id"]
    view = {"experiment_id": made, "key": "mlflow.sharedViewState.syncnorm"}

    mlflow.run_for(job_of({}, project="earlier"), [], "note")
    found = tags_of_experiment(mlflow, made)
    mlflow.call("POST", "experiments/set-experiment-tag", {**view, "value": "of the user"})
    mlflow.run_for(job_of({}, project="earlier"), [], "note")

    assert "mlflow.experimentKind" in found
    assert tags_of_experiment(mlflow, made)["mlflow.sharedViewState.syncnorm"] == "of the user"


def test_source_becomes_tags(mlflow: MlflowTracker) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    source = {"name": "jobs/one.yaml", "repository": "https://host/nets.git", "commit": commit, "branch": "nets"}
    known, unknown = job_of({}, source=source), job_of({})
    found = []
    for job in (known, unknown):
        run_id = mlflow.run_for(job, [], "note").run_id
        assert mlflow.describe(run_id, job, []) == []
        found.append(logged(mlflow, run_id)[1])

    assert found[0]["mlflow.source.name"] == "https://host/nets.git"
    assert (found[0]["mlflow.source.git.commit"], found[0]["mlflow.source.git.branch"]) == (commit, "nets")
    assert (found[0]["mlflow.source.type"], found[0]["mlflow.source.git.dirty"]) == ("JOB", "false")
    assert found[1]["mlflow.source.name"] == "a.B"
    assert "mlflow.source.git.commit" not in found[1]


@pytest.mark.parametrize("label", ["x" * 120, "日本", "a/../b", ""])
def test_labels_become_tags(mlflow: MlflowTracker, label: str) -> None:
    job = job_of({}, labels={"..": label, "a.b": label, "-": label})
    run_id = mlflow.run_for(job, [], "note").run_id

    assert mlflow.describe(run_id, job, []) == []


def test_deleted_run_is_followed_by_another(mlflow: MlflowTracker) -> None:
    job = job_of({})
    first = mlflow.run_for(job, [], "note")
    job = replace(job, experiment_id=first.experiment_id, run_id=first.run_id)
    same = mlflow.run_for(job, [], "note")
    mlflow.call("POST", "runs/delete", {"run_id": first.run_id})

    with pytest.raises(RefusedError):
        mlflow.describe(first.run_id, job, [])
    second = mlflow.run_for(job, [], "note")

    assert same == first
    assert second.run_id != first.run_id
    assert mlflow.describe(second.run_id, job, []) == []


@pytest.mark.parametrize("project", ["deleted", "a/b", "a.. b//", "x" * 120])
def test_project_whose_experiment_somebody_deleted_gets_it_back(mlflow: MlflowTracker, project: str) -> None:
    job = job_of({}, project=project)
    first = mlflow.run_for(job, [], "note")
    mlflow.call("POST", "experiments/delete", {"experiment_id": first.experiment_id})

    assert mlflow.run_for(job, [], "note") == first


def test_tags_of_models_are_found_by_every_form_of_their_uri(mlflow: MlflowTracker) -> None:
    run_id = mlflow.run_for(job_of({}), [], "").run_id
    mlflow.call("POST", "registered-models/create", {"name": "net"})
    tags = [{"key": "syncnorm.job_id", "value": "job_1"}]
    version = {"name": "net", "source": f"runs:/{run_id}/x", "run_id": run_id, "tags": tags}
    mlflow.call("POST", "model-versions/create", version)
    mlflow.call("POST", "registered-models/alias", {"name": "net", "alias": "best", "version": "1"})

    for uri in ("models:/net/1", "models:/net@best", "models:/net/latest"):
        assert mlflow.model_tags(uri) == {"syncnorm.job_id": "job_1"}
    for uri in ("models:/net/2", "models:/none/1", "models:/net@worst", "models:/none/latest", "models:/m-none"):
        assert mlflow.model_tags(uri) is None
