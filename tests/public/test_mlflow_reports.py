"""Reports about MLflow, on a real server: numbers, long values, refused names, limits of a request, lost ends."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from syncnorm.service.integrations.mlflow_run_facts import MOST_PARAMS
from syncnorm.service.integrations.mlflow_runs import MlflowTracker
from syncnorm.service.jobs.admission import new_job
from syncnorm.service.jobs.job import Job, JobState
from syncnorm.service.local.programs import local_mlflow
from syncnorm.trainer.contract.spec_reader import read_spec
from syncnorm.trainer.reporting.metric_spool import MetricSender, Spool, rest_client
from syncnorm.trainer.reporting.run_logger.lightning_logger import RunLogger
from tests.helpers.fakes import Clock
from tests.helpers.service.databases import fresh_sqlite
from tests.helpers.service.world import World
from tests.service.conftest import eventually


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with local_mlflow(tmp_path_factory.mktemp("mlflow"), preferred_port=0) as (_, found):
        with closing(MlflowTracker(found)) as tracker:
            eventually(tracker.is_answering, 180)
        yield found


@pytest.fixture
def tracker(uri: str) -> Iterator[MlflowTracker]:
    with closing(MlflowTracker(uri)) as made:
        yield made


def job_of(**init_args: Any) -> Job:
    document = {
        "name": "job",
        "project": "reports",
        "model": {"class_path": "a.B", "init_args": init_args},
        "data": {"class_path": "a.D", "batch_size": 4},
    }
    return new_job(read_spec(document), "ann", Clock()())


def described(tracker: MlflowTracker, job: Job) -> dict[str, str]:
    """The params of its run, all of which arrived."""
    run_id = tracker.run_for(job, [], "note").run_id
    assert tracker.describe(run_id, job, []) == []
    return {pair["key"]: pair["value"] for pair in run_of(tracker, run_id)["data"]["params"]}


def run_of(tracker: MlflowTracker, run_id: str) -> dict[str, Any]:
    run: dict[str, Any] = tracker.call("GET", "runs/get", {"run_id": run_id})["run"]
    return run


def history(tracker: MlflowTracker, run_id: str, key: str) -> list[tuple[int, float]]:
    answer = tracker.call("GET", "metrics/get-history", {"run_id": run_id, "metric_key": key})
    return [(point["step"], float(point["value"])) for point in answer.get("metrics", [])]


def sent(tracker: MlflowTracker, uri: str, folder: Path, points: list[dict[str, float]]) -> str:
    """The run that has got these metrics, one dict a step, as a worker sends them."""
    run_id = tracker.run_for(job_of(), [], "note").run_id
    with closing(Spool(folder / "metrics.jsonl")) as spool:
        for step, metrics in enumerate(points):
            spool.append(metrics, step)
    assert MetricSender(rest_client(uri), run_id, [folder / "metrics.jsonl"]).start().close(60)
    return run_id


# https://github.com/mlflow/mlflow/issues/1234
def test_mlflow_1234_loss_that_is_nan_is_recorded_and_ends_nothing(
    tracker: MlflowTracker, uri: str, tmp_path: Path
) -> None:
    run_id = sent(tracker, uri, tmp_path, [{"train/loss": 1.0}, {"train/loss": math.nan}, {"train/loss": 0.5}])

    found = history(tracker, run_id, "train/loss")
    assert [step for step, _ in found] == [0, 1, 2]
    assert math.isnan(found[1][1])
    assert (found[0][1], found[2][1]) == (1.0, 0.5)


# https://github.com/mlflow/mlflow/pull/22826
def test_mlflow_22826_infinite_metrics_are_the_largest_numbers_there(
    tracker: MlflowTracker, uri: str, tmp_path: Path
) -> None:
    run_id = sent(tracker, uri, tmp_path, [{"up": math.inf, "down": -math.inf}])

    assert history(tracker, run_id, "up")[0][1] > 1e308
    assert history(tracker, run_id, "down")[0][1] < -1e308


# https://github.com/mlflow/mlflow/issues/6183
# https://github.com/mlflow/mlflow/issues/10512
def test_mlflow_10512_long_param_is_cut_and_takes_no_other_with_it(tracker: MlflowTracker) -> None:
    params = described(tracker, job_of(p=[float(i) for i in range(3000)], q="x" * 20_000, r=1))

    assert params["model.init_args.r"] == "1"
    assert params["model.init_args.q"].endswith("… [cut: 20000 characters in all]")
    assert params["model.init_args.p"].startswith("[0.0, 1.0, 2.0")


# https://github.com/mlflow/mlflow/issues/12940
def test_mlflow_12940_param_with_a_colon_gets_a_name_that_mlflow_takes(tracker: MlflowTracker) -> None:
    params = described(tracker, job_of(**{"n:estimators": 3, "n_estimators": 4}))

    values = {name: value for name, value in params.items() if "estimators" in name}
    assert sorted(values.values()) == ["3", "4"]  # neither is lost, though their names become alike
    assert len(values) == 2


# https://github.com/mlflow/mlflow/issues/6049
def test_mlflow_6049_more_metrics_and_params_than_a_request_may_hold(
    tracker: MlflowTracker, uri: str, tmp_path: Path
) -> None:
    params = described(tracker, job_of(**{f"p{i}": i for i in range(250)}))
    run_id = sent(tracker, uri, tmp_path, [{f"m/{i}": float(i) for i in range(1500)}])

    assert sum(name.startswith("model.init_args.p") for name in params) == min(250, MOST_PARAMS)
    metrics = {each["key"]: each["value"] for each in run_of(tracker, run_id)["data"]["metrics"]}
    assert metrics == {f"m/{i}": float(i) for i in range(1500)}


# https://github.com/mlflow/mlflow/issues/9425
# https://github.com/mlflow/mlflow/issues/7807
def test_mlflow_9425_metrics_with_refused_names_arrive_under_others(
    tracker: MlflowTracker, uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    run_id = tracker.run_for(job_of(), [], "note").run_id
    with closing(Spool(tmp_path / "metrics.jsonl")) as spool:
        logger = RunLogger(spool, tmp_path / "artifacts", run_id=run_id, experiment="reports", current_step=lambda: 0)
        logger.log_metrics({"MAP@k": 0.5, "huber_loss[delta=1.3]": 0.25, "a,b": 0.75, "plain": 1.0}, 0)
    assert MetricSender(rest_client(uri), run_id, [tmp_path / "metrics.jsonl"]).start().close(60)

    metrics = {each["key"]: each["value"] for each in run_of(tracker, run_id)["data"]["metrics"]}
    assert sorted(metrics.values()) == [0.25, 0.5, 0.75, 1.0]
    assert metrics["plain"] == 1.0
    assert "'MAP@k'" in caplog.text  # the log says which name became another


ENDS = {"succeeded": "FINISHED", "user_error": "FAILED", "silent": "FAILED", "cancelled": "KILLED"}


# https://github.com/Lightning-AI/pytorch-lightning/issues/10397
# https://github.com/mlflow/mlflow/issues/3932
@pytest.mark.parametrize("outcome", ENDS)
def test_lightning_10397_run_of_an_ended_job_has_the_status_of_its_end(
    outcome: str, tracker: MlflowTracker, tmp_path: Path
) -> None:
    def wrap(port: Any, name: str) -> Any:
        return tracker if name == "tracker" else port

    with fresh_sqlite(tmp_path) as database:
        world = World(tmp_path, database, wrap=wrap)
        is_cancelled = outcome == "cancelled"
        labels = {"works": "99"} if is_cancelled else {"outcome": outcome}
        job = world.submit(labels=labels, limits={"max_failures": 0})
        for _ in range(100):
            if is_cancelled and world.job(job.id).state is JobState.RUNNING:
                world.apply_verb(job.id, "cancel")
            world.step()
            if world.job(job.id).is_terminal and not world.store.attempts.unreleased():
                break
        run_id = world.job(job.id).run_id

    assert run_id is not None
    assert run_of(tracker, run_id)["info"]["status"] == ENDS[outcome]
