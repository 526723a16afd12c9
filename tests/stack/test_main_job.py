"""The main job, as a newcomer runs it: in over REST, trained on two workers, out as a proven inference model."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
import yaml
from sklearn.datasets import load_digits

from syncnorm.service.client.client import Client
from syncnorm.trainer.contract.mlflow_rest import layer_metric, system_metric
from tests.helpers.paths import EXAMPLES
from tests.stack.conftest import Serving, eventually, finished

pytestmark = [pytest.mark.stack, pytest.mark.timeout(400)]

EXAMPLE = EXAMPLES / "digits-sync-batch.yaml"


@pytest.fixture(scope="module")
def job(client: Client) -> dict[str, Any]:
    return finished(client, client.submit(yaml.safe_load(EXAMPLE.read_text()))["id"])


@pytest.fixture(scope="module")
def mlflow_uri(job: dict[str, Any]) -> str:
    return str(job["mlflow"]["url"]).split("/#/")[0]


@pytest.fixture(scope="module")
def rest(mlflow_uri: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{mlflow_uri}/api/2.0/mlflow/", timeout=30) as found:
        yield found


@pytest.fixture(scope="module")
def run(job: dict[str, Any], rest: httpx.Client) -> dict[str, Any]:
    return dict(rest.get("runs/get", params={"run_id": job["mlflow"]["run_id"]}).json()["run"])


def history(rest: httpx.Client, job: dict[str, Any], key: str) -> list[dict[str, Any]]:
    params = {"run_id": job["mlflow"]["run_id"], "metric_key": key}
    return list(rest.get("metrics/get-history", params=params).json().get("metrics", []))


def artifacts(rest: httpx.Client, job: dict[str, Any], path: str) -> list[str]:
    found = rest.get("artifacts/list", params={"run_id": job["mlflow"]["run_id"], "path": path}).json()
    return [file["path"] for file in found.get("files", [])]


def test_run_has_its_data_its_source_and_the_use_of_each_rank(
    run: dict[str, Any], rest: httpx.Client, job: dict[str, Any]
) -> None:
    tags = {tag["key"]: tag["value"] for tag in run["data"]["tags"]}
    datasets = run["inputs"]["dataset_inputs"]

    assert {one["tags"][0]["value"] for one in datasets} == {"train", "validation"}
    assert {one["dataset"]["name"] for one in datasets} == {"digits"}
    assert tags["mlflow.source.name"] == "syncnorm resnet"
    assert re.fullmatch(r"[\w.]+: [\d.e-]+", tags["syncnorm.worst_layer.drift"])
    for name in ("norm/drift/max", "norm/drift/median", "norm/variance/min"):
        assert len(history(rest, job, name)) == 10
    for rank in range(2):
        assert history(rest, job, system_metric(rank, "process_memory_usage_megabytes"))[0]["value"] > 100


def test_job_succeeds_and_learns_the_digits(job: dict[str, Any]) -> None:
    assert (job["state"], job["reason"]) == ("succeeded", None)
    assert job["progress"]["metrics"]["val/accuracy"] >= 0.95
    assert (job["progress"]["epoch"], job["progress"]["step"]) == (10, 230)


def test_service_and_job_say_what_happened_once(job: dict[str, Any], serving: Serving, client: Client) -> None:
    moves = [
        line["to"] for line in serving.log() if line["message"] == ("job state changed") and line["job"] == job["id"]
    ]
    lines = [line["text"] for line in client.logs(job["id"])]

    assert moves == ["starting", "running", "finalizing", "succeeded"]
    assert sum(text.startswith("epoch ") for text in lines) == 10
    assert lines[0] == "batches of 64 samples on 2 workers; norm sync_batch: 13 SyncBatchNorm"
    answering = "eager, torch.export, onnxruntime, mlflow.pyfunc answer as the trained model does"
    assert lines[-1].startswith(f"certified: {answering}")


def test_attempt_says_where_each_rank_ran(job: dict[str, Any], client: Client) -> None:
    (attempt,) = client.attempts(job["id"])

    places = attempt["placement"]
    assert [place["rank"] for place in places] == [0, 1]
    assert {place["node_id"] for place in places} == {node["node_id"] for node in client.cluster()["nodes"]}
    assert {(place["host"], place["gpu"]) for place in places} == {(socket.gethostname(), None)}
    assert len({place["pid"] for place in places}) == 2


def test_listed_checkpoints_are_there_and_count_finished_epochs(job: dict[str, Any], client: Client) -> None:
    found = client.checkpoints(job["id"])

    assert found[0]["step"] == 230
    assert [one["epoch"] * 23 for one in found] == [one["step"] for one in found]
    assert {Path(one["path"]) for one in found} == set(Path(found[0]["path"]).parent.iterdir())


def test_certificate_proves_every_runtime_on_held_out_samples(job: dict[str, Any]) -> None:
    certificate = job["model"]["certificate"]

    assert certificate["passed"]
    assert certificate["max_relative_difference"] <= 1e-4
    checked = {(check["runtime"], check["inputs"]) for check in certificate["checks"]}
    assert {("torch.export", "held_out"), ("onnxruntime", "held_out"), ("mlflow.pyfunc", "held_out")} <= checked


def test_both_workers_held_the_same_model(job: dict[str, Any]) -> None:
    assert job["model"]["certificate"]["agreement"]["ranks"] == 2


def test_every_norm_layer_was_folded_away(job: dict[str, Any]) -> None:
    folded = job["model"]["certificate"]["folded"]

    assert len(folded) == 13
    assert all(entry["into"] for entry in folded)


def test_run_is_finished_and_has_every_epoch(job: dict[str, Any], run: dict[str, Any], rest: httpx.Client) -> None:
    assert run["info"]["status"] == "FINISHED"
    for key in ("train/loss", "train/accuracy", "val/loss", "val/accuracy", "lr", "throughput/samples_per_s"):
        assert [point["step"] for point in history(rest, job, key)] == list(range(23, 231, 23)), key


def test_run_has_the_statistics_of_every_norm_layer(job: dict[str, Any], client: Client, rest: httpx.Client) -> None:
    layers = [entry["path"] for entry in job["model"]["certificate"]["folded"]]

    for layer in layers:
        for what in ("running_mean_abs", "running_var_mean", "drift"):
            assert len(history(rest, job, layer_metric(layer, what))) == 10, (layer, what)
    files = artifacts(rest, job, "norm/statistics")
    assert len(files) == 11
    assert "norm/statistics/population.safetensors" in files
    for one in client.statistics(job["id"]):
        assert one["population"]["var_mean"] == pytest.approx(one["points"][-1]["running_var_mean"], rel=0.5)


def test_run_has_the_artifacts_of_the_contract(job: dict[str, Any], rest: httpx.Client) -> None:
    assert {"spec.yaml", "plan.json"} <= set(artifacts(rest, job, ""))
    assert "norm/conversion.json" in artifacts(rest, job, "norm")
    names = ("certificate.json", "weights.safetensors", "model.json", "model.onnx", "model.pt2")
    assert {f"export/{name}" for name in names} <= set(artifacts(rest, job, "export"))


def test_run_names_its_job(job: dict[str, Any], run: dict[str, Any]) -> None:
    tags = {tag["key"]: tag["value"] for tag in run["data"]["tags"]}

    assert tags["syncnorm.job_id"] == job["id"]
    assert tags["syncnorm.norm"] == "sync_batch"
    assert tags["syncnorm.world_size"] == "2"
    assert {param["key"]: param["value"] for param in run["data"]["params"]}["norm.kind"] == "sync_batch"


def test_page_of_the_run_tells_the_end_and_leads_back_to_the_job(job: dict[str, Any], run: dict[str, Any]) -> None:
    page = next(tag["value"] for tag in run["data"]["tags"] if tag["key"] == "mlflow.note.content")

    assert "**succeeded**, 1 attempt, step 230" in page
    assert f"| model | `{job['model']['uri']}` |" in page
    assert "| certificate | passed: eager, torch.export, onnxruntime, mlflow.pyfunc answer as the trained model" in page
    link = re.search(rf"\[`{job['id']}`\]\((http[^)]+)\)", page)
    assert link is not None
    shown = httpx.get(link[1])
    assert (shown.headers["content-type"], job["id"] in shown.text) == ("text/html; charset=utf-8", True)


@pytest.mark.filterwarnings("ignore")  # MLflow's own imports warn
def test_logged_model_recognizes_digits_with_a_signature(job: dict[str, Any], mlflow_uri: str) -> None:
    import mlflow

    mlflow.set_tracking_uri(mlflow_uri)
    model = mlflow.pyfunc.load_model(job["model"]["uri"])
    digits = load_digits()
    x = ((digits.images[:, None] / 16 - 0.3053) / 0.3760).astype(np.float32)

    answers = np.asarray(model.predict(x[:500])).argmax(axis=1)

    assert model.metadata.signature.inputs.input_names() is not None
    assert (answers == digits.target[:500]).mean() >= 0.95


def test_dry_run_shows_every_layer_that_would_change_and_stores_nothing(client: Client) -> None:
    before = [job["id"] for job in client.jobs()]

    plan = client.plan(yaml.safe_load(EXAMPLE.read_text()))

    assert plan["batch"] == {"per_worker": 32, "norm_group": 64, "global": 64}
    assert len(plan["conversion"]) == 13
    assert all(entry["to"] == "SyncBatchNorm" for entry in plan["conversion"])
    assert [job["id"] for job in client.jobs()] == before


def test_logs_tell_the_story(job: dict[str, Any], client: Client) -> None:
    phases = [event["data"].get("phase") for event in client.follow_events(job["id"])]

    assert [phase for phase in phases if phase] == [
        "preparing",
        "starting_workers",
        "training",
        "finalizing",
        "done",
    ]


def test_statistics_of_a_job_that_goes_well_raise_no_alarm(job: dict[str, Any], client: Client) -> None:
    assert "statistics_alert" not in [event["kind"] for event in client.follow_events(job["id"])]


def test_finished_job_is_exported_again_from_its_certified_weights(
    job: dict[str, Any], client: Client, rest: httpx.Client
) -> None:
    asked = client.export(job["id"], formats=["onnx"], fold=False, register_as="again")

    def over() -> dict[str, Any] | None:
        found = client.one_export(job["id"], asked["name"])
        return found if found["state"] in ("succeeded", "failed") else None

    export = eventually(over, 120)

    assert (export["state"], export["starts"]) == ("succeeded", 1), export["message"]
    assert export["passed"]
    weights = "weights.safetensors"
    assert export["files"][weights] == job["model"]["certificate"]["files"][weights]
    assert set(export["files"]) == {weights, "model.json", "model.onnx"}
    assert export["certificate"]["folded"] == []
    assert export["registered"] == "again/1"
    assert "exports/2/model.onnx" in artifacts(rest, job, "exports/2")
    assert [one["name"] for one in client.exports(job["id"])] == ["1", "2"]
    info = rest.get("runs/get", params={"run_id": job["mlflow"]["run_id"]}).json()["run"]["info"]
    assert info["status"] == "FINISHED"


@pytest.mark.chaos
def test_export_whose_process_is_killed_is_started_again(job: dict[str, Any], client: Client, serving: Serving) -> None:
    asked = client.export(job["id"], formats=["pt2"])
    # The shell that Ray starts and what it runs have the command in common.
    process = eventually(lambda: serving.processes(f"exports/{asked['name']}/1"), 60)[-1]

    process.kill()

    def over() -> dict[str, Any] | None:
        found = client.one_export(job["id"], asked["name"])
        return found if found["state"] in ("succeeded", "failed") else None

    export = eventually(over, 200)
    assert (export["state"], export["starts"]) == ("succeeded", 2), export["message"]
    assert "export_lost" in [event["kind"] for event in client.follow_events(job["id"])]


SMALL = {
    "project": "demo",
    "model": {"name": "mlp", "init_args": {"hidden": [8]}},
    "data": {"name": "digits", "batch_size": 64},
    "norm": {"kind": "sync_batch"},
    "export": {"formats": []},
}
ONE_EPOCH = {"train": {"epochs": 1, "precision": "64-true"}}


@pytest.fixture(scope="module")
def crowded(client: Client) -> tuple[dict[str, Any], dict[str, Any]]:
    """(a job that took all room but one worker's, until it was cancelled; an elastic job that trained beside it)."""
    cpus = int(sum(node["cpus"] for node in client.cluster()["nodes"]))
    most = {"train": {"epochs": 1_000_000}, "resources": {"workers": 1, "cpus_per_worker": cpus - 1}}
    long = client.submit(SMALL | most | {"name": "long"})
    eventually(lambda: client.job(long["id"])["progress"]["step"] > 5, 200)
    elastic = {"name": "elastic", "resources": {"workers": 2, "min_workers": 1}}
    beside = finished(client, client.submit(SMALL | ONE_EPOCH | elastic)["id"])
    client.cancel(long["id"])
    return finished(client, long["id"]), beside


def test_elastic_job_trains_with_the_one_worker_there_is_room_for(
    crowded: tuple[dict[str, Any], dict[str, Any]], client: Client, rest: httpx.Client
) -> None:
    _, job = crowded

    assert (job["state"], job["world_size"]) == ("succeeded", 1), job["message"]
    assert "workers_changed" in [event["kind"] for event in client.follow_events(job["id"])]
    run = rest.get("runs/get", params={"run_id": job["mlflow"]["run_id"]}).json()["run"]
    tags = {tag["key"]: tag["value"] for tag in run["data"]["tags"]}
    assert (tags["syncnorm.world_size"], tags["syncnorm.world_size_changes"]) == ("1", "1 from step 0")


@pytest.mark.chaos
def test_elastic_job_with_room_for_one_worker_learns_what_two_would(
    crowded: tuple[dict[str, Any], dict[str, Any]], client: Client
) -> None:
    _, alone = crowded

    both = finished(client, client.submit(SMALL | ONE_EPOCH | {"name": "whole", "resources": {"workers": 2}})["id"])

    assert (both["state"], both["world_size"]) == ("succeeded", 2), both["message"]
    assert alone["progress"]["step"] == both["progress"]["step"]
    for name in ("train/loss", "val/loss", "val/accuracy"):
        # fp64; sums over samples in another order
        assert alone["progress"]["metrics"][name] == pytest.approx(both["progress"]["metrics"][name], rel=1e-9), name


def test_cancelled_job_leaves_a_checkpoint_and_a_killed_run(
    crowded: tuple[dict[str, Any], dict[str, Any]], client: Client, rest: httpx.Client
) -> None:
    job, _ = crowded

    assert (job["state"], job["reason"]) == ("cancelled", "cancelled_by_user")
    stopped_at = client.attempts(job["id"])[0]["step"]
    assert stopped_at >= 5
    assert client.checkpoints(job["id"])[0]["step"] == stopped_at
    run = rest.get("runs/get", params={"run_id": job["mlflow"]["run_id"]}).json()["run"]
    assert run["info"]["status"] == "KILLED"


def test_model_that_raises_fails_as_the_users_error_with_its_traceback(client: Client, rest: httpx.Client) -> None:
    document = yaml.safe_load(EXAMPLE.read_text()) | {"name": "broken", "norm": {"kind": "none"}}
    document["model"] = {"class_path": "broken_model.Broken"}
    document["resources"] = {"workers": 1}

    job = finished(client, client.submit(document)["id"])

    assert (job["state"], job["reason"]) == ("failed", "user_error")
    assert "wavelets" in job["message"]
    text = "\n".join(line["text"] for line in client.logs(job["id"]))
    assert "Traceback" in text
    assert "broken_model.py" in text
    run = rest.get("runs/get", params={"run_id": job["mlflow"]["run_id"]}).json()["run"]
    assert run["info"]["status"] == "FAILED"


def test_nothing_of_torch_is_needed_to_read_the_weights(job: dict[str, Any], mlflow_uri: str, tmp_path: Path) -> None:
    from safetensors.numpy import load

    url = f"{mlflow_uri}/get-artifact"
    params = {"path": "export/weights.safetensors", "run_uuid": job["mlflow"]["run_id"]}
    tensors = load(httpx.get(url, params=params).content)

    assert tensors["bn1.running_var"].shape == (16,)
    assert torch.from_numpy(tensors["bn1.running_var"]).gt(0).all()
