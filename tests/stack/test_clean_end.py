"""Ctrl-C at any moment leaves no process, no port and no address behind."""

from __future__ import annotations

import socket
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from tests.stack.conftest import Serving, eventually

pytestmark = [pytest.mark.stack, pytest.mark.timeout(400)]

EXAMPLE = Path(__file__).resolve().parent.parent.parent / "examples" / "digits-sync-batch.yaml"


def assert_nothing_left(serving: Serving) -> None:
    eventually(lambda: not serving.processes(), 30)
    assert not (serving.home / "service.json").exists()


@pytest.mark.parametrize("moment", ["ray.pids", "mlflow.pids"])
def test_ctrl_c_while_starting(tmp_path: Path, moment: str) -> None:
    serving = Serving(tmp_path)
    eventually((tmp_path / moment).exists, 60)

    serving.interrupt()

    assert_nothing_left(serving)


def test_ctrl_c_while_a_job_trains_frees_processes_and_port(tmp_path: Path) -> None:
    serving = Serving(tmp_path)
    with eventually(serving.ready, 180) as client:
        document = yaml.safe_load(EXAMPLE.read_text()) | {"train": {"epochs": 10_000}}
        job = client.submit(document)
        eventually(lambda: client.job(job["id"])["progress"]["step"] > 0, 200)
    port = urlsplit(str(serving.url())).port
    assert len(serving.processes()) > 5

    code = serving.interrupt()

    assert code in (0, 130)
    assert_nothing_left(serving)
    with socket.socket() as probe:
        assert port is not None
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
