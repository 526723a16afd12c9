"""A network that writes down what its process is like when training begins, and then, if told, spoils that process."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn

OF_ONE_PROCESS = (
    *("RAY_JOB_ID", "RAY_RAYLET_PID", "RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR", "MASTER_PORT"),
    "_MLFLOW_TELEMETRY_SESSION_ID",
)
"""Variables that differ from process to process also without warm starts."""


class Spoiling(pl.LightningModule):
    """Trains like anything else."""

    def __init__(self, folder: str, *, spoils: bool = False) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 10))
        self._folder, self._spoils = folder, spoils

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.net(x)
        return output

    def on_train_start(self) -> None:
        partial = Path(self._folder, f"{self.global_rank}.partial")
        partial.write_text(json.dumps(facts()))
        partial.rename(Path(self._folder, f"{self.global_rank}.json"))

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:  # noqa: ARG002
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def on_train_end(self) -> None:
        if self._spoils:
            spoil()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


def facts() -> dict[str, Any]:
    """What a job before this one might have changed."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "variables": {name: value for name, value in os.environ.items() if name not in OF_ONE_PROCESS},
        "path": sys.path,
        "umask": status["Umask"].strip(),
        "signals": {name: status[name].strip() for name in ("SigIgn", "SigBlk")},
        "limits": resource.getrlimit(resource.RLIMIT_CORE),
        "threads": sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("spoiled")),
        "dtype": str(torch.get_default_dtype()),
        "num_threads": torch.get_num_threads(),
        "norm": nn.BatchNorm2d.__module__,
        "hook": sys.excepthook.__module__,
        "parent": Path(f"/proc/{os.getppid()}/cmdline").read_bytes().replace(b"\0", b" ").decode(),
    }


def spoil() -> None:
    os.environ["SPOILED"] = "1"
    sys.path.insert(0, "/nowhere")
    os.umask(0)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    threading.Thread(target=time.sleep, args=(600,), name="spoiled", daemon=True).start()
    torch.set_default_dtype(torch.float64)
    nn.BatchNorm2d = nn.Identity  # type: ignore[assignment,misc]
    sys.excepthook = lambda *_: None
