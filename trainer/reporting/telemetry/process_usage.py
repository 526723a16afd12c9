"""What the process of a rank, its children and its GPU use, as MLflow names it in its System metrics (mlflow 3.17)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress

import psutil
import torch

logger = logging.getLogger(__name__)

_MEGABYTE = 1e6
Reading = dict[str, float]


class ProcessUsage:
    """Reads the usage since the last reading. Children are the processes that load data."""

    def __init__(self, cpus: int, device: torch.device | None, clock: Callable[[], float] = time.monotonic) -> None:
        """cpus: those that the rank may use; 100 % is all of them. device: its GPU; None: it trains on CPUs."""
        self._cpus = cpus
        self._device = device if device is not None and device.type == "cuda" else None
        self._clock = clock
        self._process = psutil.Process()
        self._cpu_s: dict[int, float] = {}
        self._at = clock()
        self._has_nvml = True
        self._read_processes()

    def read(self) -> Reading:
        began = self._at
        used_s, memory_bytes = self._read_processes()
        found = {
            "cpu_utilization_percentage": 100 * used_s / (max(self._at - began, 1e-6) * self._cpus),
            "process_memory_usage_megabytes": memory_bytes / _MEGABYTE,
            "system_memory_usage_percentage": psutil.virtual_memory().percent,
        }
        return {name: round(value, 1) for name, value in {**found, **self._gpu()}.items()}

    def _read_processes(self) -> tuple[float, float]:
        """Seconds of processor time since the last reading, and bytes of memory, of the process and its children."""
        used_s = memory_bytes = 0.0
        now: dict[int, float] = {}
        for process in (self._process, *self._process.children(recursive=True)):
            with suppress(psutil.Error):  # a child that has just ended
                times, memory = process.cpu_times(), process.memory_info().rss
                now[process.pid] = times.user + times.system
                used_s += now[process.pid] - self._cpu_s.get(process.pid, 0.0)
                memory_bytes += memory
        self._cpu_s, self._at = now, self._clock()
        return used_s, memory_bytes

    def _gpu(self) -> Reading:
        if self._device is None:
            return {}
        free, total = torch.cuda.mem_get_info(self._device)
        used = total - free
        name = f"gpu_{self._device.index or 0}"
        found = {
            f"{name}_memory_usage_megabytes": used / _MEGABYTE,
            f"{name}_memory_usage_percentage": 100 * used / total,
        }
        utilization = self._utilization()
        return found if utilization is None else {**found, f"{name}_utilization_percentage": utilization}

    def _utilization(self) -> float | None:
        """Share of the last moment in which a kernel ran; None without nvidia-ml-py or a driver that tells."""
        if not self._has_nvml:
            return None
        try:
            return float(torch.cuda.utilization(self._device))
        except (ModuleNotFoundError, RuntimeError) as error:
            self._has_nvml = False
            logger.info("the run lacks the utilization of the GPU, which needs nvidia-ml-py and NVML: %s", error)
            return None
