"""Trains a job of one worker on CPUs in the driver's own process: there is no worker group to start and monitor."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from syncnorm.trainer.contract.spec import JobSpec
from syncnorm.trainer.ranks.rank_context import single_process_context, single_process_group
from syncnorm.trainer.reporting.log_handler import ReportingHandler
from syncnorm.trainer.worker import worker

logger = logging.getLogger(__name__)

RESERVE_S = 10.0
"""Time to wait for capacity that the service saw a moment ago. If it is not on this host, Ray Train may start the
worker on another."""


@contextmanager
def reserve_worker(spec: JobSpec, workers: int) -> Iterator[bool]:
    """Reserves capacity for the only worker on this driver's host while the block runs, so that Ray counts it as used.

    workers: of this attempt. False: it needs workers in processes of their own (several, GPUs, variables that must be
    set when Python starts), or the host has no free capacity.
    """
    res = spec.resources
    if workers > 1 or res.gpus_per_worker or spec.env:
        yield False
        return
    reservation = placement_group([{"CPU": res.cpus_per_worker, _this_node(): 0.001}])
    try:
        is_reserved = reservation.wait(RESERVE_S)
        if not is_reserved:
            # Once capacity is free, it would take it from the worker, or from the job's growth.
            remove_placement_group(reservation)
        yield is_reserved
    finally:
        remove_placement_group(reservation)  # repeating it is harmless


def _this_node() -> str:
    """The resource that only this host has."""
    names: dict[str, float] = next(node["Resources"] for node in ray.nodes() if node["NodeID"] == _node_id())
    return next(name for name in names if name.startswith("node:") and not name.startswith("node:__"))


def _node_id() -> str:
    node_id: str = ray.get_runtime_context().get_node_id()
    return node_id


def train(config: dict[str, Any]) -> dict[str, Any] | None:
    """`worker.train` in a thread of this process, as Ray Train would run it in a thread of a worker's.

    Raises: RankFailedError.
    """
    root = logging.getLogger()
    drivers = [handler for handler in root.handlers if isinstance(handler, ReportingHandler)]
    for handler in drivers:  # the rank reports its lines itself
        root.removeHandler(handler)
    try:
        with single_process_group(), ThreadPoolExecutor(1, thread_name_prefix="rank-0") as thread:
            return thread.submit(
                worker.train_at, single_process_context(_node_id() if ray.is_initialized() else None), config
            ).result()
    finally:
        for handler in drivers:
            root.addHandler(handler)
