"""The trace of a profile whose job has a bucket for storage: there, and in the run of a real MLflow."""

from __future__ import annotations

from typing import Any

import httpx

from syncnorm.trainer.contract.profile import ProfileAnswer, ProfileRequest
from syncnorm.trainer.debugging.profile_delivery import ProfileDelivery
from syncnorm.trainer.debugging.profiling import Profiling
from syncnorm.trainer.ranks.rank_context import single_process_group
from syncnorm.trainer.storage.attempt_layout import opened
from syncnorm.trainer.worker.fit import fit
from tests.helpers.trainer.ranks import RecordingReporter, build, launch_of, rank_context
from tests.trainer.conftest import Mlflow

DOCUMENT = {
    "name": "profiled",
    "model": {"name": "mlp", "init_args": {"hidden": [8]}},
    "data": {"name": "digits", "batch_size": 100},
    "train": {"epochs": 1},
}


class Reporter(RecordingReporter):
    """Keeps the answer to a request for a profile."""

    hidden = ()
    answer: ProfileAnswer

    def profile(self, _request: int, answer: ProfileAnswer) -> None:
        self.answer = answer


def profiled(bucket: str, **place: Any) -> tuple[ProfileAnswer, list[str]]:
    """The answer, and the traces in the bucket."""
    launch, reporter = launch_of(DOCUMENT).model_copy(update=place), Reporter()
    with opened(f"{bucket}/jobs/j/attempts/1") as folders:
        asked = Profiling(ProfileDelivery(launch, folders, reporter, 0))  # type: ignore[arg-type]
        asked.request(ProfileRequest(number=1, seconds=60, steps=2, ranks=[0]))
        with single_process_group():
            fit(build(0, 1, launch), launch, folders, reporter, rank_context(0, 1), profiling=asked)  # type: ignore[arg-type]
        asked.close(120)
        return reporter.answer, [path.name for path in folders.mirror.children(folders.artifacts / "profile")]


def test_a_trace_is_in_the_bucket_and_in_the_run(bucket: str, mlflow_server: Mlflow) -> None:
    run_id = mlflow_server.new_run()

    answer, stored = profiled(bucket, mlflow_uri=mlflow_server.uri, mlflow_run_id=run_id)

    address, params = f"{mlflow_server.uri}/api/2.0/mlflow/artifacts/list", {"run_id": run_id, "path": "profile"}
    files = httpx.get(address, params=params, timeout=60).json()["files"]
    assert (answer.notes, answer.trace) == ([], "profile/step-2-rank-0.json.gz")
    assert stored == ["step-2-rank-0.json.gz"]
    assert [(one["path"], one["file_size"]) for one in files] == [(answer.trace, answer.trace_bytes)]


def test_where_mlflow_is_away_the_trace_is_a_file_of_the_job_and_the_answer_says_so(bucket: str) -> None:
    answer, stored = profiled(bucket, mlflow_uri="http://127.0.0.1:9", mlflow_run_id="r")

    assert answer.summary is not None
    assert answer.notes[0].startswith("The trace is among the files of the job, but not in its MLflow run: ")
    assert stored == ["step-2-rank-0.json.gz"]
