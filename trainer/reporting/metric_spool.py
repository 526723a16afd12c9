"""Metrics on their way to MLflow: the training thread appends to a spool file, a background thread delivers.

Training never waits for MLflow. Undelivered metrics stay in the spool, and a resumed attempt delivers them first. A
(key, step) that MLflow already has is never sent again.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import httpx

from syncnorm.trainer.contract.mlflow_rest import mlflow_account
from syncnorm.trainer.contract.text import storable
from syncnorm.trainer.reporting.run_sender import REQUEST_TIMEOUT_S, RunSender

logger = logging.getLogger(__name__)

# Names of contract.md section 4, in one place.
TRAIN_LOSS = "train/loss"
VAL_LOSS = "val/loss"
LEARNING_RATE = "lr"
THROUGHPUT = "throughput/samples_per_s"
SYNC_SHARE = "norm/sync_share"
SLOWEST_RANK = "norm/slowest_rank"
WAITING_SHARE = "norm/waiting_share"
WINDOW_CHANGES = "norm/window_changes"
DRIFT_MAX, DRIFT_MEDIAN, VARIANCE_MIN = "norm/drift/max", "norm/drift/median", "norm/variance/min"
NON_FINITE_STEPS = "train/non_finite_steps"

METRICS_A_REQUEST = 1000
HISTORY_A_REQUEST = 25_000
LONGEST_KEY = 250
"""Of MLflow."""


# What each diagnostic logs, as `diagnostics/{layer}/{name}`; those of the whole network have the layer `landscape` or
# `equivalence`.
DIAGNOSTIC_METRICS: dict[str, tuple[str, ...]] = {
    "gradient_histograms": ("nonzero_gradient_share", "gradient_l2", "gradient_below_l2", "weight_l2"),
    "landscape": ("loss_min", "loss_max", "gradient_change", "beta_smoothness"),
    "covariate_shift": ("shift_l2", "shift_cosine"),
    "activation_statistics": ("activation_mean", "activation_std", "saturated_share", "dead_channels"),
    "equivalence": ("loss_difference", "gradient_difference", "statistics_difference", "optimizer_difference"),
}


def diagnostic_metric(layer: str, name: str) -> str:
    """Name of a metric of a diagnostic. name: one of DIAGNOSTIC_METRICS. layer: "" is the network itself."""
    return f"diagnostics/{layer or 'network'}/{name}"


_LARGEST_STEP = 2**53


class Point(TypedDict):
    """One value of one metric, as MLflow's log-batch takes it. timestamp: milliseconds since 1970, UTC."""

    key: str
    value: float
    step: int
    timestamp: int


class Spool:
    """An append-only file of points, one per line, so that a torn last line costs one point only.

    Threads may share it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")

    def append(self, metrics: Mapping[str, float], step: int, at_ms: int | None = None) -> None:
        """at_ms: the time of the values, in milliseconds since 1970; None: now."""
        at_ms = int(time.time() * 1000) if at_ms is None else at_ms
        points = [Point(key=key, value=float(value), step=step, timestamp=at_ms) for key, value in metrics.items()]
        lines = "".join(json.dumps(point) + "\n" for point in points)
        with self._lock:
            if self._file.closed:
                self._file = self.path.open("a", encoding="utf-8")
            self._file.write(lines)
            self._file.flush()

    def close(self) -> None:
        """What is appended later opens it anew."""
        self._file.close()


class DeliveredSteps:
    """Which (key, step) MLflow has.

    newest: the largest step of each key. A step above it is new. For another one, as after a resume or where a module
    logs step 5 after step 6, all steps of the key are asked for, once. history: all steps of a key, from MLflow.
    """

    def __init__(self, newest: dict[str, int], history: Callable[[str], set[int]]) -> None:
        self._newest = newest
        self._history = history
        self._steps: dict[str, set[int]] = {}

    def has(self, key: str, step: int) -> bool:
        if step > self._newest.get(key, -1):
            return False
        if key not in self._steps:
            self._steps[key] = self._history(key)
        return step in self._steps[key]

    def add(self, points: Sequence[Mapping[str, Any]]) -> None:
        for point in points:
            key, step = point["key"], point["step"]
            self._newest[key] = max(step, self._newest.get(key, -1))
            if key in self._steps:
                self._steps[key].add(step)


class MetricSender(RunSender):
    """Delivers spools to one MLflow run, in order, at most once per (key, step), for as long as it takes."""

    def __init__(
        self, client: httpx.Client, run_id: str, spools: list[Path], counts: Callable[[], bool | None] = lambda: True
    ) -> None:
        super().__init__(client, run_id, "metrics", counts)
        self._spools = spools
        self._offsets = dict.fromkeys(spools, 0)
        self._delivered_steps: DeliveredSteps | None = None

    def _deliver(self) -> None:
        if self._delivered_steps is None:
            metrics = self._check_run()["data"].get("metrics", [])
            newest = {metric["key"]: int(metric.get("step", 0)) for metric in metrics}
            self._delivered_steps = DeliveredSteps(newest, self._all_steps)
        for spool in self._spools:
            for batch, offset in _read_batches(spool, self._offsets[spool]):
                self._send(batch, self._delivered_steps)
                self._offsets[spool] = offset

    def _send(self, batch: list[Point], delivered: DeliveredSteps) -> None:
        """Send the new points in `batch`, each noted in `delivered` with the request that MLflow has accepted."""
        new: dict[tuple[str, int], Point] = {}
        for point in batch:
            at = point["key"], point["step"]
            if at not in new and not delivered.has(*at):
                new[at] = point
        if new:
            # MLflow accepts NaN and infinity as words, and shows them.
            self._log_batch("metrics", list(new.values()), delivered.add)

    def _all_steps(self, key: str) -> set[int]:
        found, token = set[int](), ""
        while True:
            params = {"run_id": self._run_id, "metric_key": key, "max_results": HISTORY_A_REQUEST, "page_token": token}
            page = self._get("metrics/get-history", params)
            found |= {int(metric.get("step", 0)) for metric in page.get("metrics", [])}
            token = page.get("next_page_token") or ""
            if not token:
                return found


def _read_batches(spool: Path, offset: int) -> Iterator[tuple[list[Point], int]]:
    """Whole lines from `offset` on, up to a request's worth at a time, each with the offset after it."""
    if not spool.exists():
        return
    with spool.open("rb") as file:
        file.seek(offset)
        batch: list[Point] = []
        for line in file:
            if not line.endswith(b"\n"):
                break
            offset += len(line)
            point = _read_point(line)
            if point is not None:
                batch.append(point)
            if len(batch) == METRICS_A_REQUEST:
                yield batch, offset
                batch = []
        yield batch, offset


def _read_point(line: bytes) -> Point | None:
    """The point in a line; None if it holds none: after a power cut a file may hold anything."""
    try:
        point = json.loads(line)
        step, at_ms = int(point["step"]), int(point["timestamp"])
        if not 0 <= step <= _LARGEST_STEP:
            raise ValueError(step)
        return Point(key=storable(point["key"], LONGEST_KEY), value=float(point["value"]), step=step, timestamp=at_ms)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        logger.warning("skipping a line of the metrics file that is not a metric: %r", line[:80])
        return None


def rest_client(mlflow_uri: str) -> httpx.Client:
    """A client of MLflow's REST API with short timeouts: MLflow's own retries for minutes."""
    return httpx.Client(
        base_url=f"{mlflow_uri.rstrip('/')}/api/2.0/mlflow/",
        auth=mlflow_account(),
        timeout=REQUEST_TIMEOUT_S,
        trust_env=False,
    )
