"""Threads that deliver to MLflow share the time that is left at the end."""

from __future__ import annotations

import time
from pathlib import Path

from syncnorm.trainer.reporting.metric_spool import MetricSender, rest_client
from syncnorm.trainer.reporting.run_sender import close_all
from tests.trainer.conftest import Mlflow
from tests.trainer.reporting.test_metric_spool import fill

PATIENCE_S = 4.0
NOWHERE = "http://127.0.0.1:9"


def test_senders_without_mlflow_take_no_longer_than_one(tmp_path: Path) -> None:
    """A rank that fails while MLflow is away must not keep the job from ending, once for each sender."""
    spool = fill(tmp_path / "s", range(3))
    senders = [MetricSender(rest_client(NOWHERE), "a", [spool]).start() for _ in range(4)]

    began = time.monotonic()
    close_all(senders, PATIENCE_S)

    assert PATIENCE_S <= time.monotonic() - began < 2 * PATIENCE_S
    assert not any(sender.delivered for sender in senders)


def test_sender_with_mlflow_delivers_beside_one_without(mlflow_server: Mlflow, tmp_path: Path) -> None:
    run, spool = mlflow_server.new_run(), fill(tmp_path / "s", range(3))
    away = MetricSender(rest_client(NOWHERE), run, [spool]).start()
    there = MetricSender(rest_client(mlflow_server.uri), run, [spool]).start()

    close_all([away, there], PATIENCE_S)

    assert (away.delivered, there.delivered) == (False, True)
    assert len(mlflow_server.history(run, "train/loss")) == 3
