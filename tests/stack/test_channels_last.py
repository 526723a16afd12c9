"""A job with the channels of a position together in memory, on real workers: proven equal, exported and certified."""

from __future__ import annotations

import pytest
import yaml

from syncnorm.service.client.client import Client
from tests.helpers.paths import EXAMPLES
from tests.stack.conftest import finished

pytestmark = [pytest.mark.stack, pytest.mark.timeout(400)]


@pytest.mark.parametrize("kind", ["sync_batch", "group"])
def test_two_workers_equal_one_device_and_the_export_the_trained_model(client: Client, kind: str) -> None:
    document = yaml.safe_load((EXAMPLES / "digits-sync-batch.yaml").read_text())
    document |= {"norm": {"kind": kind}, "diagnostics": ["equivalence"]}
    document["train"] = document["train"] | {"epochs": 2, "memory_format": "channels_last"}

    job = finished(client, client.submit(document)["id"])
    lines = [line["text"] for line in client.logs(job["id"])]

    assert (job["state"], job["reason"]) == ("succeeded", None)
    assert any("computed again on one device with the whole batch: equal" in line for line in lines)
    assert any(line.startswith("certified: eager, torch.export, onnxruntime, mlflow.pyfunc answer") for line in lines)
