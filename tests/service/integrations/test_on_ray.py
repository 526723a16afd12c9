"""Jobs through the whole service on a real Ray and a real MLflow, with the stand-in driver."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from syncnorm.service.client.client import Client, ProblemError
from tests.service.conftest import eventually

pytestmark = pytest.mark.stack


def spec(**labels: str) -> dict[str, Any]:
    return {
        "name": "job",
        "project": "demo",
        "labels": labels,
        "model": {"name": "resnet"},
        "data": {"name": "digits", "batch_size": 32},
        "resources": {"workers": 2},
    }


def wait_for(service: Client, job_id: str, *states: str, timeout_s: float = 90) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        job = service.job(job_id)
        return job if job["state"] in states else None

    return eventually(look, timeout_s)


def run_status(job: dict[str, Any]) -> str:
    base = job["mlflow"]["url"].split("/#/")[0]
    run = httpx.get(f"{base}/api/2.0/mlflow/runs/get", params={"run_id": job["mlflow"]["run_id"]}).json()["run"]
    return str(run["info"]["status"])


def test_job_goes_from_submit_to_model(service: Client) -> None:
    job = service.submit(spec())

    done = wait_for(service, job["id"], "succeeded", "failed")

    assert done["state"] == "succeeded"
    assert done["model"]["uri"] == "models:/m-1"
    assert done["progress"]["step"] == 3
    assert run_status(done) == "FINISHED"
    kinds = [event["kind"] for event in service.follow_events(job["id"])]
    passing = ("progress", "finalizing")  # finalizing may be too short to be seen
    assert [kind for kind in kinds if kind not in passing] == ["queued", "starting", "running", "succeeded"]
    assert "from None" in next(service.logs(job["id"]))["text"]


def test_failed_job_has_reason_and_advice(service: Client) -> None:
    job = service.submit(spec(outcome="failed"))

    done = wait_for(service, job["id"], "succeeded", "failed")

    assert (done["state"], done["reason"]) == ("failed", "user_error")
    assert "traceback is in the logs" in done["message"]
    assert run_status(done) == "FAILED"


def test_cancelled_job_stops_with_a_checkpoint(service: Client) -> None:
    job = service.submit(spec(steps="1000", step_s="0.1"))
    wait_for(service, job["id"], "running")

    service.cancel(job["id"])
    done = wait_for(service, job["id"], "cancelled")

    assert done["reason"] == "cancelled_by_user"
    assert run_status(done) == "KILLED"
    assert service.attempts(job["id"])[0]["outcome"] == "stopped"


@pytest.mark.parametrize(
    ("change", "pointer", "text"),
    [
        ({"resources": {"workers": 0}}, "/resources/workers", "must be at least 1"),
        ({"resources": {"workers": 4096}}, "/resources/workers", "the whole cluster has capacity for"),
        ({"model": {"name": "nope"}}, "/model/name", "must be one of cnn"),
        ({"norm": {"kind": "nope"}}, "/norm/kind", "must be one of none"),
    ],
)
def test_bad_spec_is_refused_by_field_and_not_stored(
    service: Client, change: dict[str, Any], pointer: str, text: str
) -> None:
    before = [job["id"] for job in service.jobs()]

    with pytest.raises(ProblemError) as refused:
        service.submit(spec() | change)

    assert refused.value.status == 422
    assert [item["pointer"] for item in refused.value.problem["errors"]] == [pointer]
    assert text in refused.value.problem["errors"][0]["detail"]
    assert [job["id"] for job in service.jobs()] == before
