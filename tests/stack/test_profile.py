"""A profile of a real job with a late rank: what it says agrees with the metric, and its trace is in the run."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from syncnorm.service.cli.code_folder import pack
from syncnorm.service.client.client import Client
from tests.helpers.chrome_trace import read_trace
from tests.helpers.stack import late_rank
from tests.helpers.stack.shell import shell
from tests.stack.conftest import eventually, finished

pytestmark = [pytest.mark.stack, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def job_id(client: Client, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A job that trains until the tests are over."""
    folder = tmp_path_factory.mktemp("code")
    shutil.copy(str(late_rank.__file__), folder / "late_rank.py")
    document = {
        "name": "late",
        "model": {"class_path": "late_rank.LateRank"},
        "data": {"name": "digits", "batch_size": 32},
        "norm": {"kind": "sync_batch"},
        "train": {"epochs": 1000, "checkpoint_every": {"epochs": 500}},
        "resources": {"workers": 2},
        "code": {"package": client.put_package(pack(folder))["package"]},
    }
    job_id = str(client.submit(document)["id"])
    try:
        yield job_id
    finally:
        client.cancel(job_id)
        finished(client, job_id)


def rest(run: dict[str, Any], endpoint: str, /, **params: str) -> Any:
    """An answer of MLflow about the run."""
    url = httpx.URL(run["url"])
    address = f"{url.scheme}://{url.netloc.decode()}/api/2.0/mlflow/{endpoint}"
    answer = httpx.get(address, params={"run_id": run["run_id"], **params}, timeout=60)
    return answer.raise_for_status().json()


def sync_share(run: dict[str, Any], after: int = 0) -> float | None:
    """Of the first epoch that ended with this step or later; None: there is none yet."""
    points = rest(run, "metrics/get-history", metric_key="norm/sync_share").get("metrics", [])
    return next(
        (float(one["value"]) for one in sorted(points, key=lambda one: one["step"]) if one["step"] >= after), None
    )


@pytest.fixture(scope="module")
def found(client: Client, job_id: str) -> dict[str, Any]:
    """The profile, with `sync_share` of the epoch that it is a part of."""
    eventually(lambda: client.job(job_id)["state"] == "running", 300)
    run = client.job(job_id)["mlflow"]
    eventually(lambda: sync_share(run), 200)
    found = client.profile(job_id, seconds=10)
    summary = found["items"][0]["summary"]
    last_step = summary["first_step"] + summary["steps"]
    return found | {"sync_share": eventually(lambda: sync_share(run, last_step), 120)}


def test_every_rank_says_how_long_it_waits_as_the_metric_does(found: dict[str, Any]) -> None:
    first, late = (one["summary"] for one in found["items"])

    assert (found["pending"], found["silent"]) == ([], [])
    assert first["exchange_share"] == pytest.approx(found["sync_share"], rel=0.2)
    assert first["exchange_ms"] > 1000 * late_rank.LATE_S * 0.8
    assert late["exchange_share"] < first["exchange_share"]


def test_layers_add_up_and_the_first_one_has_the_waiting(found: dict[str, Any]) -> None:
    for summary in (one["summary"] for one in found["items"]):
        layers = {one["path"]: one for one in summary["layers"]}
        whole = sum(one["forward_ms"] + one["backward_ms"] for one in layers.values())

        assert layers.keys() == {"net.1", "net.4"}
        # Six decimals of a millisecond each.
        assert whole == pytest.approx(summary["forward_ms"] + summary["backward_ms"], abs=1e-4)
        assert whole / summary["step_ms"] == pytest.approx(summary["norm_share"], abs=1e-4)
        assert all(one["exchange_ms"] <= one["forward_ms"] + one["backward_ms"] for one in layers.values())
    first = {one["path"]: one for one in found["items"][0]["summary"]["layers"]}
    assert first["net.1"]["forward_ms"] > 10 * first["net.4"]["forward_ms"] > 0
    assert min(one["backward_ms"] for one in first.values()) > 0


def test_trace_is_in_the_run_and_opens_in_a_viewer(
    client: Client, job_id: str, found: dict[str, Any], tmp_path: Path
) -> None:
    shown = shell(f"syncnorm profile {job_id} --last --output {tmp_path}/trace.json.gz", SYNCNORM_URL=client.url)
    traces = {one["rank"]: one["trace"] for one in found["items"]}
    run = client.job(job_id)["mlflow"]

    for rank, path in traces.items():
        events = read_trace(tmp_path / f"trace-rank-{rank}.json.gz")
        names = {event["name"] for event in events}
        assert {"norm::forward net.1", "norm::forward net.4", "norm::exchange", "syncnorm::step 0"} <= names
        assert path == f"profile/step-{found['items'][rank]['summary']['first_step']}-rank-{rank}.json.gz"
    assert "normalization" in shown
    assert "net.1" in shown
    assert artifacts(run, "profile") == sorted(traces.values())


def artifacts(run: dict[str, Any], folder: str) -> list[str]:
    return sorted(one["path"] for one in rest(run, "artifacts/list", path=folder)["files"])


def test_events_and_audit_say_who_asked(client: Client, job_id: str, found: dict[str, Any]) -> None:
    assert found
    events = [event for event in client.events(job_id) if event["kind"] == "profile_requested"]
    audited = [entry for entry in client.audit(action="job.profile") if entry["object"] == job_id]

    assert [(one["actor"]["kind"], one["data"]["ranks"]) for one in events] == [("user", [0, 1])]
    assert len(audited) == 1


def test_a_profile_of_a_job_that_is_cancelled_meanwhile_comes_to_an_end(client: Client, job_id: str) -> None:

    answers: list[dict[str, Any]] = []

    def ask() -> None:
        with Client(client.url) as own:
            answers.append(own.profile(job_id, seconds=60))

    asking = threading.Thread(target=ask)
    asking.start()
    eventually(lambda: client.last_profile(job_id)["pending"] or None, 60)
    client.cancel(job_id)
    asking.join(200)

    job = finished(client, job_id)
    assert job["state"] == "cancelled"
    assert answers[0]["pending"] == []
    # Whichever came first: the end of the epoch, with which a profile ends, or the stop.
    assert all(one["summary"] or one["problem"] for one in answers[0]["items"])
