"""Ctrl-C at any moment leaves no process, no port and no address behind."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

import pytest
import yaml

from tests.helpers.paths import EXAMPLES
from tests.stack.conftest import Serving, eventually

pytestmark = [pytest.mark.stack, pytest.mark.timeout(400)]

EXAMPLE = EXAMPLES / "digits-sync-batch.yaml"


def assert_nothing_left(serving: Serving) -> None:
    eventually(lambda: not serving.processes(), 30)
    assert not (serving.home / "service.json").exists()


@pytest.mark.parametrize("moment", ["ray.pids", "mlflow.pids"])
def test_ctrl_c_while_starting(own_serving: Serving, moment: str) -> None:
    eventually((own_serving.home / moment).exists, 60)

    own_serving.interrupt()

    assert_nothing_left(own_serving)


def test_ctrl_c_while_a_job_trains_frees_processes_and_port(own_serving: Serving) -> None:
    with eventually(own_serving.ready, 180) as client:
        document = yaml.safe_load(EXAMPLE.read_text()) | {"train": {"epochs": 10_000}}
        job = client.submit(document)
        eventually(lambda: client.job(job["id"])["progress"]["step"] > 0, 200)
    port = urlsplit(str(own_serving.url())).port
    assert len(own_serving.processes()) > 5

    code = own_serving.interrupt()

    assert code in (0, 130)
    assert_nothing_left(own_serving)
    with socket.socket() as probe:
        assert port is not None
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
