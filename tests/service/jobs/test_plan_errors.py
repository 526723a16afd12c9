"""What a plan calls an error is refused at submit, with the field that cures it; a plan shows it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.helpers.service.api import SPEC, api
from tests.helpers.service.world import World
from tests.service.api.test_api import problem

Running = tuple[TestClient, World]
MLP: dict[str, Any] = {
    "model": {"name": "mlp"},
    "data": {"name": "synthetic", "batch_size": 8, "init_args": {"samples": 33}},
}
DROP = {"data": MLP["data"] | {"last_batch": "drop"}}


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    with api(tmp_path) as pair:  # a cluster of 4 CPUs
        yield pair


ERRORS = {
    "uneven groups": ({"norm": {"group": 3}}, "uneven_norm_groups", "/norm/group"),
    "a group larger than the job": ({"norm": {"group": 4}}, "uneven_norm_groups", "/norm/group"),
    "groups of a kind that needs none": ({"norm": {"kind": "group", "group": 3}}, "uneven_norm_groups", "/norm/group"),
    "groups picked by auto": ({"norm": {"kind": "auto", "group": 3}}, "uneven_norm_groups", "/norm/group"),
    "a cluster too small": ({"resources": {"workers": 5}}, "never_fits", "/resources/workers"),
    "one value in the last batch": (MLP, "uneven_last_batch", "/data/last_batch"),
    "one value in the last batch of each group": (
        MLP | {"norm": {"group": 1}, "data": MLP["data"] | {"init_args": {"samples": 35}}},
        "uneven_last_batch",
        "/data/last_batch",
    ),
    "one value on fewer workers": (
        MLP
        | {
            "norm": {"kind": "batch"},
            "resources": {"workers": 4, "min_workers": 3},
            "data": MLP["data"] | {"init_args": {"samples": 36}},
        },
        "uneven_last_batch",
        "/data/last_batch",
    ),
    "one value in every batch": (
        MLP | {"norm": {"kind": "batch"}, "data": MLP["data"] | {"batch_size": 1, "init_args": {"samples": 32}}},
        "one_value_per_channel",
        "/data/batch_size",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_error_of_a_plan_is_refused_at_submit(running: Running, name: str) -> None:
    client, world = running
    change, code, pointer = ERRORS[name]
    document = SPEC | change

    shown = client.post("/v1/jobs?dry_run=true", json=document)
    refused = client.post("/v1/jobs", json=document)
    study = client.post("/v1/studies", json={"name": "s", "base": document, "grid": {}, "seeds": [0, 1]})

    assert shown.status_code == 200, shown.text
    (finding,) = [one for one in shown.json()["findings"] if one["severity"] == "error"]
    assert (finding["code"], shown.json()["inspected"]) == (code, False)
    body = problem(refused, 422, "invalid_spec")
    assert body["errors"] == [{"pointer": pointer, "detail": f"{finding['message']} {finding['fix']}"}]
    assert body["detail"].endswith("nothing was stored.")
    problem(study, 422, "invalid_spec")
    assert client.get("/v1/jobs").json()["items"] == []
    assert world.store.history.events_of_kinds(["queued"], 0, world.clock(), 10) == []


@pytest.mark.parametrize(
    "change",
    [
        {"norm": {"group": 2}},
        {"norm": {"group": 1}},
        MLP | DROP,
        MLP | {"norm": {"kind": "group"}},
        MLP | {"train": {"steps": 2}},  # ends before the last batch
        MLP | {"data": MLP["data"] | {"init_args": {"samples": 34}}},
        {"model": {"name": "resnet"}, "data": MLP["data"]},  # maps of many positions
    ],
)
def test_what_has_no_error_is_taken(running: Running, change: dict[str, Any]) -> None:
    client, _ = running

    answer = client.post("/v1/jobs", json=SPEC | change)

    assert answer.status_code == 201, answer.text


def test_a_job_too_large_is_planned_as_never_and_waits_for_hosts_where_it_is_told_to(running: Running) -> None:
    client, world = running
    large = SPEC | {"resources": {"workers": 5}}
    patient = SPEC | {"resources": {"workers": 5, "wait_for_hosts": True}}

    planned = client.post("/v1/jobs?dry_run=true", json=large).json()
    refused = client.post("/v1/jobs", json=large)
    waiting = client.post("/v1/jobs?dry_run=true", json=patient).json()
    queued = client.post("/v1/jobs", json=patient)
    small = client.post("/v1/jobs", json=SPEC)
    for _ in range(3):
        world.step()

    assert planned["fits"] == waiting["fits"] == "never"
    assert "capacity for 4 workers" in problem(refused, 422, "invalid_spec")["errors"][0]["detail"]
    assert "wait_for_hosts" in refused.json()["errors"][0]["detail"]
    (finding,) = [one for one in waiting["findings"] if one["code"] == "never_fits"]
    assert finding["severity"] == "warning"
    assert queued.status_code == 201
    explained = client.get(f"/v1/jobs/{queued.json()['id']}/explain").json()
    assert (explained["code"], "Add hosts" in explained["message"]) == ("never_fits", True)
    assert world.job(small.json()["id"]).state != "queued"


def test_a_plan_does_not_say_that_nothing_was_stored(running: Running) -> None:
    client, _ = running

    planned = client.post("/v1/jobs?dry_run=true", json=SPEC | {"seed": -1})

    assert problem(planned, 422, "invalid_spec")["detail"] == "The job spec has 1 problem."
