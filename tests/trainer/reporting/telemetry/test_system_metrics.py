"""What ranks use is read in a background thread, recorded by rank 0, and named as MLflow's System metrics want it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import psutil
import pytest
import torch
import torch.distributed as dist

from syncnorm.trainer.reporting.telemetry import system_metrics
from syncnorm.trainer.reporting.telemetry.process_usage import ProcessUsage
from syncnorm.trainer.reporting.telemetry.system_metrics import OwnBoard, StoreBoard, SystemMetrics
from tests.helpers.trainer.ranks import rank_context

CHILD = "import time; x = bytearray(64 * 2**20); end = time.time() + 60\nwhile time.time() < end: pass"


def compute(seconds: float) -> None:
    began = time.process_time()
    while time.process_time() - began < seconds:
        pass


def test_usage_is_that_of_the_process_since_the_last_reading() -> None:
    now = 0.0
    usage = ProcessUsage(2, None, lambda: now)
    compute(0.3)
    now = 1.0

    found = usage.read()

    assert found["cpu_utilization_percentage"] == pytest.approx(15, abs=8)  # 0.3 s of 1 s on 2 CPUs; clock ticks
    rss = psutil.Process().memory_info().rss / 1e6
    assert found["process_memory_usage_megabytes"] >= 0.9 * rss
    assert 0 < found["system_memory_usage_percentage"] < 100


def test_children_count_as_long_as_they_live() -> None:
    usage = ProcessUsage(1, None)
    before = usage.read()["process_memory_usage_megabytes"]
    with subprocess.Popen([sys.executable, "-c", CHILD]) as child:
        while psutil.Process(child.pid).memory_info().rss < 64e6:
            time.sleep(0.02)

        during = usage.read()

        child.kill()
    after = usage.read()

    assert during["process_memory_usage_megabytes"] - before > 50
    assert after["process_memory_usage_megabytes"] < during["process_memory_usage_megabytes"] - 50
    assert after["cpu_utilization_percentage"] >= 0


def test_gpu_is_read_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (60_000_000, 100_000_000 + device.index))
    monkeypatch.setattr(torch.cuda, "utilization", lambda _: 73)

    found = ProcessUsage(1, torch.device("cuda", 1)).read()

    assert found["gpu_1_memory_usage_megabytes"] == 40
    assert found["gpu_1_memory_usage_percentage"] == 40
    assert found["gpu_1_utilization_percentage"] == 73


def test_gpu_without_nvml_has_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def utilization(device: torch.device) -> int:
        asked.append(device)
        raise ModuleNotFoundError("nvidia-ml-py does not seem to be installed")

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (60_000_000, 100_000_000))
    monkeypatch.setattr(torch.cuda, "utilization", utilization)
    usage = ProcessUsage(1, torch.device("cuda", 0))

    readings = [usage.read(), usage.read()]

    assert all("gpu_0_memory_usage_megabytes" in one and "gpu_0_utilization_percentage" not in one for one in readings)
    assert len(asked) == 1


def test_rank_0_records_all_ranks_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    store = dist.TCPStore("127.0.0.1", 0, 2, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=30))
    other = dist.TCPStore("127.0.0.1", store.port, 2, is_master=False, timeout=timedelta(seconds=30))
    recorded: list[dict[str, Any]] = []
    times = iter(range(1000, 2000))
    monkeypatch.setattr(system_metrics.time, "time", lambda: next(times))

    def of(rank: int, to: dist.Store) -> SystemMetrics:
        monkeypatch.setattr(dist.distributed_c10d, "_get_default_store", lambda: to)

        def record(values: Mapping[str, float], step: int, at_ms: int) -> None:
            recorded.append({"by": rank, "step": step, "at_ms": at_ms, **values})

        return SystemMetrics(ProcessUsage(1, None), StoreBoard(), rank_context(rank, 2), record)

    first, second = of(0, store), of(1, other)
    for ticking in (first, second, first, first):
        ticking.tick()

    ranks = ["node_0" if any("node_0/" in key for key in one) else "node_1" for one in recorded]
    assert ranks == ["node_0", "node_0", "node_1", "node_0"]
    assert [(one["by"], one["step"]) for one in recorded] == [(0, 1000), (0, 1002), (0, 1001), (0, 1003)]
    assert recorded[0]["at_ms"] == 1_000_000
    assert "system/node_1/cpu_utilization_percentage" in recorded[2]


def test_thread_that_can_not_read_ends_and_disturbs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system_metrics, "FIRST_S", 0.0)

    def record(*_: object) -> None:
        raise OSError("No space left on device")

    metrics = SystemMetrics(ProcessUsage(1, None), OwnBoard(), rank_context(0, 1), record)
    metrics.start()
    metrics._thread.join(20)

    assert not metrics._thread.is_alive()
    metrics.close()
