"""One worker with four micro-batches a step, killed in mid-training, ends with the weights of several workers."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load

from syncnorm.service.client.client import Client
from tests.stack.conftest import Serving, eventually, finished

pytestmark = [pytest.mark.stack, pytest.mark.timeout(500)]


def document(workers: int, batch_size: int, **train: Any) -> dict[str, Any]:
    return {
        "name": "micro-batches",
        "model": {"name": "resnet", "init_args": {"depth": 8, "width": 8}},
        "data": {"name": "digits", "batch_size": batch_size},
        "norm": {"kind": "sync_batch"},
        "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
        "train": {"epochs": 4, "precision": "64-true", "checkpoint_every": {"steps": 4}, **train},
        "resources": {"workers": workers},
        "statistics": {"population": "none"},
        "export": {"formats": []},
    }


def weights(job: dict[str, Any]) -> dict[str, torch.Tensor]:
    base = str(job["mlflow"]["url"]).split("/#/")[0]
    params = {"path": "export/weights.safetensors", "run_uuid": job["mlflow"]["run_id"]}
    return load(httpx.get(f"{base}/get-artifact", params=params, timeout=30).raise_for_status().content)


def test_killed_job_of_micro_batches_equals_workers(client: Client, serving: Serving) -> None:
    workers = finished(client, client.submit(document(2, 120))["id"])
    job = client.submit(document(1, 60, accumulate=4, accumulate_statistics="exact"))
    eventually(lambda: client.job(job["id"])["progress"]["step"] >= 8, 200)

    for process in serving.processes("syncnorm.trainer.driver.main"):
        process.kill()
    done = finished(client, job["id"], 400)

    assert (workers["state"], done["state"]) == ("succeeded", "succeeded"), done["message"]
    assert [attempt["reason"] for attempt in client.attempts(job["id"])] == ["worker_lost", None]
    found, expected = weights(done), weights(workers)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-6)
