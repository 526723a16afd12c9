"""The only worker of a job, in a process that is there already."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from syncnorm.trainer.contract.protocol import Launch, Result
from syncnorm.trainer.contract.spec_reader import read_spec
from syncnorm.trainer.driver import single_process as alone
from syncnorm.trainer.errors import RankFailedError
from syncnorm.trainer.ranks.rank_context import RankContext
from syncnorm.trainer.reporting.log_handler import ReportingHandler
from syncnorm.trainer.reporting.reporter import Reporter
from syncnorm.trainer.worker import worker
from tests.helpers.trainer.answers import answering
from tests.helpers.trainer.on_ray import ROOT
from tests.helpers.trainer.ranks import RecordingReporter, launch_of
from tests.trainer.conftest import Mlflow
from tests.trainer.worker.test_finalize import logged_models, registered_models

SPEC = {"name": "j", "model": {"name": "mlp"}, "data": {"name": "digits", "batch_size": 8}}


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "launch.json").write_text(launch_of(SPEC).model_dump_json())
    return {"folder": str(tmp_path), "resume_from": None, "patience_s": 0.0}


def test_trains_as_the_only_rank_of_a_group_in_a_thread(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def run(launch: Launch, _folders: object, _reporter: Reporter, context: RankContext, *_: object) -> Result:
        seen.update(rank=context.rank, size=dist.get_world_size(), main=threading.current_thread().name)
        return Result(fence=launch.fence, outcome="succeeded", step=3)

    monkeypatch.setattr(worker, "run", run)

    result = Result.model_validate(alone.train(config))

    assert (result.outcome, result.step) == ("succeeded", 3)
    assert seen == {"rank": 0, "size": 1, "main": "rank-0_0"}
    assert not dist.is_initialized()


def test_failure_is_that_of_rank_0_and_is_logged_once(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []

    class Driver(RecordingReporter):
        def log(self, _level: str, text: str, *_: object) -> None:
            heard.append(text)

    def run(*_: object) -> Result:
        logging.getLogger("user").warning("before the end")
        raise FileNotFoundError("no such data")

    monkeypatch.setattr(worker, "run", run)
    handler = ReportingHandler(Driver())  # type: ignore[arg-type]
    logging.getLogger().addHandler(handler)
    try:
        with pytest.raises(RankFailedError) as caught:
            alone.train(config)
        restored = handler in logging.getLogger().handlers
    finally:
        logging.getLogger().removeHandler(handler)

    failure = json.loads(caught.value.failure)
    assert (failure["rank"], failure["reason"]) == (0, "data_missing")
    assert heard == []  # rank 0 reports its lines itself
    assert restored
    assert not dist.is_initialized()


_RESERVATION = """
import ray
from ray.util import placement_group_table
from syncnorm.trainer.contract.spec_reader import read_spec
from syncnorm.trainer.driver import single_process

single_process.RESERVE_S = 1.0
ray.init(address="auto")
spec = read_spec({spec})
with single_process.reserve_worker(spec, 1) as is_reserved:
    found = []
    while set(found) != {{"REMOVED"}}:
        found = [group["state"] for group in placement_group_table().values()]
    print(is_reserved, found)
"""


@pytest.mark.chaos
@pytest.mark.timeout(120)
def test_reservation_that_does_not_come_is_asked_for_no_longer(ray_address: str) -> None:
    """It would come while the worker trains elsewhere, and hold a second place: the worker's own, or its growth's."""
    too_large = SPEC | {"resources": {"cpus_per_worker": 64}}
    environment = os.environ | {"RAY_ADDRESS": ray_address, "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)}

    command = [sys.executable, "-c", _RESERVATION.format(spec=too_large)]
    said = subprocess.run(command, env=environment, timeout=60, capture_output=True, text=True, check=True).stdout

    assert said.splitlines()[-1] == "False ['REMOVED']"


@pytest.mark.filterwarnings("ignore")  # exporters and MLflow warn about their own internals
def test_job_that_was_given_up_while_it_finalizes_registers_nothing(
    mlflow_server: Mlflow, config: dict[str, Any], tmp_path: Path
) -> None:
    name = "given up at the end"
    document = SPEC | {"train": {"steps": 2}, "export": {"formats": [], "register_as": name}}
    with answering(until="finalizing") as service:
        where = {"service_url": service.url, "token": "t", "mlflow_uri": mlflow_server.uri}
        launch = Launch.model_validate_json((tmp_path / "launch.json").read_bytes()).model_copy(
            update={**where, "spec": read_spec(document), "mlflow_run_id": mlflow_server.new_run()}
        )
        (tmp_path / "launch.json").write_text(launch.model_dump_json())
        before = logged_models(mlflow_server)

        with pytest.raises(RankFailedError, match="a newer start has taken over"):
            alone.train(config)

    assert len(logged_models(mlflow_server)) == len(before) + 1  # it got as far as that
    assert name not in registered_models(mlflow_server)
