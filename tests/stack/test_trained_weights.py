"""Fine-tuning on the real service: a job starts from another one's weights, with another head."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file

from syncnorm.service.client.client import Client
from syncnorm.trainer.storage.atomic_files import sha256_of
from syncnorm.trainer.training import checkpoints
from tests.stack.conftest import Serving, finished

pytestmark = [pytest.mark.stack, pytest.mark.timeout(400)]

BASE: dict[str, Any] = {
    "name": "base",
    "model": {"name": "resnet", "init_args": {"depth": 8, "width": 4}},
    "data": {"name": "digits", "batch_size": 64},
    "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
    "train": {"epochs": 2, "keep_best": {"monitor": "val/accuracy", "mode": "max"}},
    "export": {"formats": ["pt2"], "register_as": "base-net"},
}
TUNED: dict[str, Any] = BASE | {
    "export": {"formats": []},
    "name": "tuned",
    "data": {
        "name": "synthetic",
        "batch_size": 32,
        "init_args": {"shape": [1, 8, 8], "num_classes": 3, "samples": 64},
    },
    # With a rate this small the weights at the end are those at the start, to the digits that are compared.
    "optimizer": {"name": "sgd", "lr": 1e-12},
    "train": {"epochs": 1},
    "resources": {"workers": 2},
}


@pytest.fixture(scope="module")
def base(client: Client) -> dict[str, Any]:
    job = finished(client, client.submit(BASE)["id"])
    assert job["state"] == "succeeded", job["message"]
    return job


def tuned(job: str, **how: Any) -> dict[str, Any]:
    return TUNED | {"model": BASE["model"] | {"init_from": {"job": job, "drop": ["fc.*"], **how}}}


def test_plan_says_what_is_loaded_before_anything_starts(base: dict[str, Any], client: Client) -> None:
    plan = client.plan(tuned(base["id"]))

    found = plan["init_from"]
    assert found["origin"]["source"] == f"job {base['id']} step {base['progress']['step']}"
    assert {one["name"] for one in found["dropped"]} == {"network.fc.weight", "network.fc.bias"}
    assert {(one["name"], *one["shape"]) for one in found["left"]} == {("fc.weight", 3, 16), ("fc.bias", 3)}
    assert len(found["loaded"]) == 42
    assert [one["code"] for one in plan["findings"] if one["severity"] == "error"] == []


def test_plan_names_the_tensors_that_do_not_fit(base: dict[str, Any], client: Client) -> None:
    plan = client.plan(tuned(base["id"], drop=[]))

    (finding,) = [one for one in plan["findings"] if one["code"] == "weights_do_not_fit"]
    assert "fc.weight has shape (3, 16) in the network, shape (10, 16) in the source" in finding["message"]
    assert 'model.init_from.drop: ["fc.*"]' in finding["fix"]


@pytest.mark.chaos
@pytest.mark.parametrize("form", ["models:/base-net/1", "{logged}"])
def test_published_weights_of_the_model_are_found(
    form: str, base: dict[str, Any], client: Client, serving: Serving
) -> None:
    uri = form.format(logged=base["model"]["uri"])
    weights = folder(serving, base) / "export" / "weights.safetensors"

    plan = client.plan(TUNED | {"model": BASE["model"] | {"init_from": {"model": uri, "drop": ["fc.*"]}}})

    assert plan["init_from"]["origin"]["digest"] == f"sha256:{sha256_of(weights)}"
    assert len(plan["init_from"]["loaded"]) == 42


@pytest.mark.chaos
def test_job_whose_weights_do_not_fit_ends_before_its_first_step(base: dict[str, Any], client: Client) -> None:
    job = finished(client, client.submit(tuned(base["id"], drop=[]))["id"])

    assert (job["state"], job["reason"]) == ("failed", "user_error")
    assert "fc.weight has shape (3, 16) in the network, shape (10, 16) in the source" in job["message"]
    assert job["progress"]["step"] == 0


@pytest.fixture(scope="module")
def trained(base: dict[str, Any], client: Client) -> dict[str, Any]:
    return finished(client, client.submit(tuned(base["name"], checkpoint="best"))["id"])


def test_job_starts_from_the_best_checkpoint_with_another_head(
    trained: dict[str, Any], base: dict[str, Any], client: Client, serving: Serving
) -> None:
    assert trained["state"] == "succeeded", trained["message"]
    origin = (
        trained["model"]["certificate"]["init_from"] if trained["model"] else described(serving, trained)["init_from"]
    )
    step = int(origin["source"].rpartition(" ")[2])
    paths = {one["step"]: one["path"] for one in client.checkpoints(base["id"])}
    source = checkpoints.load(Path(paths[step]))["state_dict"]
    state = load_file(folder(serving, trained) / "export" / "weights.safetensors")

    for name, tensor in state.items():
        if name.startswith("fc."):
            assert tensor.shape[0] == 3
        elif name.rpartition(".")[2] in ("weight", "bias"):
            # fp32: the job has taken two steps with a vanishing rate.
            torch.testing.assert_close(tensor, source[f"network.{name}"], rtol=1e-6, atol=1e-7)
    assert (origin["loaded"], sorted(origin["left"])) == (42, ["fc.bias", "fc.weight"])


def test_run_and_plan_say_where_the_weights_came_from(trained: dict[str, Any], serving: Serving) -> None:
    uri, run_id = str(trained["mlflow"]["url"]).split("/#/")[0], trained["mlflow"]["run_id"]
    run = httpx.get(f"{uri}/api/2.0/mlflow/runs/get", params={"run_id": run_id}, timeout=30).json()["run"]
    tags = {tag["key"]: tag["value"] for tag in run["data"]["tags"]}
    plan = json.loads((folder(serving, trained) / "artifacts" / "plan.json").read_text())

    assert tags["syncnorm.init_from.source"] == plan["init_from"]["origin"]["source"]
    assert tags["syncnorm.init_from.digest"] == plan["init_from"]["origin"]["digest"]
    params = {param["key"]: param["value"] for param in run["data"]["params"]}
    assert params["model.init_from.checkpoint"] == "best"
    assert params["model.init_from.job"].startswith("job_")


def folder(serving: Serving, job: dict[str, Any]) -> Path:
    return serving.home / "storage" / "jobs" / job["id"] / "attempts" / "1"


def described(serving: Serving, job: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder(serving, job) / "export" / "model.json").read_text())
    return found
