"""A worker of a user's module is killed in mid-epoch: the job ends as its guarantees say, weight by weight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load

from syncnorm.service.cli.code_folder import pack
from syncnorm.service.client.client import Client
from tests.helpers.trainer import own_modules
from tests.stack.conftest import Serving, eventually, finished

pytestmark = [pytest.mark.stack, pytest.mark.chaos, pytest.mark.timeout(600)]

SAMPLES = 16_000
EPOCH = SAMPLES // 8 // 2
"""Steps of an epoch on two workers, each of which takes batches of 8."""


@pytest.fixture(scope="module")
def package(client: Client, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_modules.py").write_bytes(Path(own_modules.__file__).read_bytes())
    return str(client.put_package(pack(folder))["package"])


def document(package: str, module: str, data: str) -> dict[str, Any]:
    return {
        "name": "survivor",
        "model": {"class_path": f"own_modules.{module}"},
        "data": {"class_path": f"own_modules.{data}", "init_args": {"samples": SAMPLES}},
        "train": {"epochs": 2, "checkpoint_every": {"steps": 100}},
        "resources": {"workers": 2},
        "code": {"package": package},
        "export": {"formats": []},
    }


def weights(job: dict[str, Any]) -> dict[str, torch.Tensor]:
    uri = str(job["mlflow"]["url"]).split("/#/")[0]
    params = {"path": "export/weights.safetensors", "run_uuid": job["mlflow"]["run_id"]}
    return load(httpx.get(f"{uri}/get-artifact", params=params, timeout=30).raise_for_status().content)


def metrics(job: dict[str, Any]) -> dict[str, float]:
    """All but what depends on the clock."""
    return {
        name: value
        for name, value in job["progress"]["metrics"].items()
        if not name.startswith(("throughput/", "norm/"))
    }


def killed_in_mid_epoch(client: Client, serving: Serving, spec: dict[str, Any]) -> dict[str, Any]:
    """The job, done, one worker of which was killed in its first epoch."""
    job = client.submit(spec)
    eventually(lambda: client.job(job["id"])["progress"]["step"] >= 250, 200)

    serving.processes("RayTrainWorker")[0].kill()
    done = finished(client, job["id"], 400)

    assert done["state"] == "succeeded", done["message"]
    assert [attempt["reason"] for attempt in client.attempts(job["id"])] == ["worker_lost", None]
    return done


@pytest.mark.parametrize(("module", "data"), [("TwoOptimizers", "Points"), ("TakesDicts", "Dicts")])
def test_job_ends_with_the_weights_of_one_without_a_kill(
    client: Client, serving: Serving, package: str, module: str, data: str
) -> None:
    spec = document(package, module, data)
    undisturbed = finished(client, client.submit(spec)["id"])

    done = killed_in_mid_epoch(client, serving, spec)

    assert done["guarantees"]["resumes_exactly"]["holds"] == "yes"
    expected, found = weights(undisturbed), weights(done)
    assert [path for path, tensor in expected.items() if not torch.equal(tensor, found[path])] == []
    assert metrics(done) == metrics(undisturbed)


def test_stream_is_read_from_its_start_as_its_guarantee_says(client: Client, serving: Serving, package: str) -> None:
    done = killed_in_mid_epoch(client, serving, document(package, "Hooks", "Streams"))

    promise = done["guarantees"]["resumes_exactly"]
    assert (promise["holds"], "within an epoch it is read from its start" in promise["why"]) == ("partly", True)
    resumed_at = int(client.attempts(done["id"])[1]["resume_from"].rpartition("step-")[2])
    # Every worker reads the whole stream: two epochs of twice as many steps, and what was read twice.
    assert done["progress"]["step"] == 2 * (2 * EPOCH) + resumed_at
