"""Metrics on their way to MLflow: the training thread appends to a spool file, a background thread delivers.

Training never waits for MLflow. Undelivered metrics stay in the spool, and a resumed attempt delivers them first. A
(key, step) that MLflow already has is never sent again.
"""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypedDict

import httpx

from syncnorm.trainer.contract.mlflow_rest import mlflow_account
from syncnorm.trainer.contract.text import storable, storable_json

logger = logging.getLogger(__name__)

# Names of contract.md section 4, in one place.
TRAIN_LOSS = "train/loss"
VAL_LOSS = "val/loss"
LEARNING_RATE = "lr"
THROUGHPUT = "throughput/samples_per_s"
SYNC_SHARE = "norm/sync_share"
NON_FINITE_STEPS = "train/non_finite_steps"

REQUEST_TIMEOUT_S = 10.0
LONGEST_PAUSE_S = 15.0
METRICS_A_REQUEST = 1000
LONGEST_KEY = 250
"""Of MLflow."""


def layer_metric(layer: str, what: str) -> str:
    """Name of a metric of one normalization layer: `norm/{layer}/{running_mean_abs | running_var_mean | drift}`."""
    return f"norm/{layer}/{what}"


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


_REFUSED = (httpx.codes.BAD_REQUEST, httpx.codes.REQUEST_ENTITY_TOO_LARGE, httpx.codes.UNPROCESSABLE_ENTITY)
_LARGEST_STEP = 2**53


class Point(TypedDict):
    """One value of one metric, as MLflow's log-batch takes it. timestamp: milliseconds since 1970, UTC."""

    key: str
    value: float
    step: int
    timestamp: int


class Spool:
    """An append-only file of points, one per line, so that a torn last line costs one point only."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")

    def append(self, metrics: Mapping[str, float], step: int, at_ms: int | None = None) -> None:
        """at_ms: the time of the values, in milliseconds since 1970; None: now."""
        at_ms = int(time.time() * 1000) if at_ms is None else at_ms
        points = [Point(key=key, value=float(value), step=step, timestamp=at_ms) for key, value in metrics.items()]
        self._file.writelines(json.dumps(point) + "\n" for point in points)
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class _RunGoneError(Exception):
    """The run was deleted."""


class _GivenUpError(Exception):
    """Another attempt writes to the run now."""


class MetricSender:
    """Delivers spools to one MLflow run, in order, at most once per (key, step), for as long as it takes.

    counts: whether this attempt is still current; None: unknown now. Asked after an MLflow outage: that may have been a
    partition, behind which another attempt was started that writes to the run.
    """

    def __init__(
        self, client: httpx.Client, run_id: str, spools: list[Path], counts: Callable[[], bool | None] = lambda: True
    ) -> None:
        self._client = client
        self._counts = counts
        self._run_id = run_id
        self._spools = spools
        self._offsets = dict.fromkeys(spools, 0)
        self._last_step: dict[str, int] | None = None
        self._ending = threading.Event()
        self._deadline = math.inf
        self.delivered = self.was_away = False
        self._thread = threading.Thread(target=self._run, name="metric-sender", daemon=True)

    def start(self) -> MetricSender:
        self._thread.start()
        return self

    def close(self, timeout_s: float) -> bool:
        """Deliver the remaining metrics for at most `timeout_s`; returns whether everything arrived."""
        self._deadline = time.monotonic() + timeout_s
        self._ending.set()
        self._thread.join(timeout_s + REQUEST_TIMEOUT_S)
        self._client.close()
        return self.delivered

    def _run(self) -> None:
        pause_s = 1.0
        while True:
            ending = self._ending.is_set()
            try:
                if self.was_away:
                    self._require_standing()
                    self.was_away = False
                self._deliver()
                pause_s = 1.0
                if ending:
                    self.delivered = True
                    return
            except _RunGoneError:
                logger.warning("MLflow run %s was deleted; its metrics stay in %s", self._run_id, self._spools)
                return
            except _GivenUpError:
                logger.warning("another attempt writes to run %s now; this one sends no more metrics", self._run_id)
                return
            except Exception as error:
                # Also an answer of another server, or a bug of ours: neither may end the thread.
                self._note_outage(error)
                pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
                if ending and time.monotonic() > self._deadline:
                    return
            self._ending.wait(pause_s) if not ending else time.sleep(0.5)

    def _note_outage(self, error: Exception) -> None:
        is_odd = not isinstance(error, httpx.HTTPError)
        if is_odd and not self.was_away:
            logger.warning(
                "MLflow gave an unexpected answer; metrics are kept and sent later: %s: %s", type(error).__name__, error
            )
        elif not is_odd:
            logger.info("MLflow is unavailable; metrics are kept and sent later: %s", error)
        self.was_away = True

    def _require_standing(self) -> None:
        counts = self._counts()
        if counts is None:
            raise httpx.ConnectError("the service can't say whether this attempt is still current")
        if not counts:
            raise _GivenUpError

    def _deliver(self) -> None:
        if self._last_step is None:
            self._last_step = self._steps_already_there()
        for spool in self._spools:
            for batch, offset in _read_batches(spool, self._offsets[spool]):
                self._send(batch, self._last_step)
                self._offsets[spool] = offset

    def _send(self, batch: list[Point], last_step: dict[str, int]) -> None:
        """Send the new points in `batch`; `last_step` advances with each request that MLflow has accepted."""
        after = dict(last_step)
        new = []
        for point in batch:
            if point["step"] > after.get(point["key"], -1):
                after[point["key"]] = point["step"]
                new.append(point)
        if new:
            self._post(new, last_step)

    def _post(self, points: list[Point], last_step: dict[str, int]) -> None:
        """Send points. One that MLflow will never accept is found by bisection and skipped, so that it blocks no
        other."""
        # MLflow accepts NaN and infinity as words, and shows them.
        answer = self._client.post("runs/log-batch", json={"run_id": self._run_id, "metrics": storable_json(points)})
        if answer.status_code not in _REFUSED:
            answer.raise_for_status()
        elif len(points) > 1:
            self._check_run()
            middle = len(points) // 2
            self._post(points[:middle], last_step)
            self._post(points[middle:], last_step)
        else:
            logger.warning("MLflow refused a metric value; skipping it: %s: %s", points[0], answer.text[:300])
        last_step.update({point["key"]: point["step"] for point in points})

    def _steps_already_there(self) -> dict[str, int]:
        metrics = self._check_run()["data"].get("metrics", [])
        return {metric["key"]: int(metric.get("step", 0)) for metric in metrics}

    def _check_run(self) -> dict[str, Any]:
        """The run, which can be written to. Raises: _RunGoneError if it was deleted."""
        answer = self._client.get("runs/get", params={"run_id": self._run_id})
        if answer.status_code == httpx.codes.NOT_FOUND:
            raise _RunGoneError
        run: dict[str, Any] = answer.raise_for_status().json()["run"]
        if run["info"]["lifecycle_stage"] == "deleted":
            raise _RunGoneError
        return run


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
