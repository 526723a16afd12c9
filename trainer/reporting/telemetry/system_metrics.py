"""CPU, memory and GPU use of every rank, for the tab System metrics of MLflow. Read in a background thread."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import torch.distributed as dist

from syncnorm.trainer.contract.mlflow_rest import system_metric
from syncnorm.trainer.ranks.rank_context import RankContext
from syncnorm.trainer.reporting.metric_spool import Spool
from syncnorm.trainer.reporting.telemetry.process_usage import ProcessUsage, Reading

logger = logging.getLogger(__name__)

FIRST_S, SHORTEST_S = 3.0, 10.0
READINGS = 360
"""Readings of the first hour. Later ones come less often: a longer job has 360 more for each 2.7 times its length."""


Record = Callable[[Mapping[str, float], int, int], None]
"""Takes values by name, their step, and their time in milliseconds since 1970."""


class Board(Protocol):
    """Where each rank leaves its newest reading for rank 0."""

    def put(self, rank: int, reading: str) -> None: ...

    def newest(self, ranks: int) -> dict[int, str]: ...


class StoreBoard:
    """The rendezvous store of torch.distributed, which all ranks reach already."""

    def __init__(self) -> None:
        self._store = dist.distributed_c10d._get_default_store()

    def put(self, rank: int, reading: str) -> None:
        self._store.set(_key(rank), reading)

    def newest(self, ranks: int) -> dict[int, str]:
        there = [rank for rank in range(ranks) if self._store.check([_key(rank)])]
        return {rank: self._store.get(_key(rank)).decode() for rank in there}


class OwnBoard:
    """Of a rank without others."""

    def __init__(self) -> None:
        self._readings: dict[int, str] = {}

    def put(self, rank: int, reading: str) -> None:
        self._readings[rank] = reading

    def newest(self, ranks: int) -> dict[int, str]:
        return {rank: reading for rank, reading in self._readings.items() if rank < ranks}


class SystemMetrics:
    """Reads this rank's usage; rank 0 records that of all ranks.

    The step of a record is the time in seconds since 1970: MLflow draws these metrics over time, and an attempt that
    resumes must not repeat steps.
    """

    def __init__(self, usage: ProcessUsage, board: Board, context: RankContext, record: Record) -> None:
        self._usage = usage
        self._board = board
        self._context = context
        self._record = record
        self._recorded: dict[int, str] = {}
        self._began = time.monotonic()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="system-metrics", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._ending.set()
        self._thread.join(SHORTEST_S)

    def tick(self) -> None:
        at_s = int(time.time())
        self._board.put(self._context.rank, json.dumps([at_s, self._usage.read()]))
        if self._context.rank == 0:
            for rank, text in self._board.newest(self._context.world_size).items():
                if self._recorded.get(rank) != text:
                    self._recorded[rank] = text
                    self._record_of(rank, *json.loads(text))

    def _record_of(self, rank: int, at_s: int, reading: Reading) -> None:
        self._record({system_metric(rank, name): value for name, value in reading.items()}, at_s, 1000 * at_s)

    def _run(self) -> None:
        wait_s = FIRST_S
        while not self._ending.wait(wait_s):
            wait_s = pause_s(time.monotonic() - self._began)
            try:
                self.tick()
            except Exception as error:
                # For example, rank 0 with the store has ended. No reading is worth a job.
                logger.info("no more system metrics from rank %d: %s", self._context.rank, error)
                return


def pause_s(elapsed_s: float) -> float:
    """Seconds until the next reading of a job that has trained this long.

    >>> pause_s(60.0), pause_s(24 * 3600.0)
    (10.0, 240.0)
    """
    return max(SHORTEST_S, elapsed_s / READINGS)


@contextmanager
def system_metrics(context: RankContext, cpus: int, spool: Spool) -> Iterator[None]:
    """Within the block, what this rank uses is recorded."""
    many = dist.is_initialized() and context.world_size > 1
    board: Board = StoreBoard() if many else OwnBoard()
    metrics = SystemMetrics(ProcessUsage(cpus, context.device), board, context, spool.append)
    metrics.start()
    try:
        yield
    finally:
        metrics.close()


def _key(rank: int) -> str:
    return f"syncnorm/system/{rank}"
