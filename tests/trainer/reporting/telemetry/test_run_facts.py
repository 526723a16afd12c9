"""Tags and datasets reach the run in the background: each once, the newest value of a tag, and over outages."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from syncnorm.trainer.reporting.telemetry.run_facts import FactsSender, RunFacts


class Mlflow:
    def __init__(self) -> None:
        self.sent: list[tuple[str, Any]] = []
        self.answers: dict[str, int] = {}

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path.rpartition("/mlflow/")[2]
        if path == "runs/get":
            return httpx.Response(200, json={"run": {"info": {"lifecycle_stage": "active"}}})
        if status := self.answers.get(path):
            return httpx.Response(status)
        self.sent.append((path, json.loads(request.content)))
        return httpx.Response(200, json={})


@pytest.fixture
def mlflow() -> Mlflow:
    return Mlflow()


@pytest.fixture
def facts() -> RunFacts:
    return RunFacts()


@pytest.fixture
def sender(mlflow: Mlflow, facts: RunFacts) -> FactsSender:
    client = httpx.Client(transport=httpx.MockTransport(mlflow), base_url="http://mlflow/api/2.0/mlflow/")
    return FactsSender(client, "run-1", facts)


def test_each_fact_is_sent_once_and_a_tag_with_its_newest_value(
    mlflow: Mlflow, facts: RunFacts, sender: FactsSender
) -> None:
    facts.add_inputs([{"dataset": {"name": "digits"}, "tags": []}])
    facts.tag({"worst": "bn1: 0.5"})
    facts.tag({"worst": "bn2: 0.7"})

    for _ in range(3):
        sender._deliver()
    facts.tag({"worst": "bn2: 0.7", "other": "x"})
    sender._deliver()

    tags = [[(tag["key"], tag["value"]) for tag in body["tags"]] for _, body in mlflow.sent if "tags" in body]
    names = [body["datasets"][0]["dataset"]["name"] for _, body in mlflow.sent if "datasets" in body]
    assert tags == [[("worst", "bn2: 0.7")], [("other", "x")]]
    assert names == ["digits"]


def test_facts_are_kept_while_mlflow_is_away(mlflow: Mlflow, facts: RunFacts, sender: FactsSender) -> None:
    facts.add_inputs([{"dataset": {"name": "digits"}, "tags": []}])
    facts.tag({"worst": "bn1"})
    mlflow.answers = {"runs/log-inputs": 503}
    with pytest.raises(httpx.HTTPStatusError):
        sender._deliver()
    mlflow.answers = {}

    sender._deliver()

    assert [path for path, _ in mlflow.sent] == ["runs/log-inputs", "runs/log-batch"]


def test_refused_datasets_cost_no_tags(
    mlflow: Mlflow, facts: RunFacts, sender: FactsSender, caplog: pytest.LogCaptureFixture
) -> None:
    facts.add_inputs([{"dataset": {"name": ""}, "tags": []}])
    facts.tag({"worst": "bn1"})
    mlflow.answers = {"runs/log-inputs": 400}

    sender._deliver()
    sender._deliver()

    assert [path for path, _ in mlflow.sent] == ["runs/log-batch"]
    assert caplog.text.count("MLflow refused the datasets of this job") == 1
