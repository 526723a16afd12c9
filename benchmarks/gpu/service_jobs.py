"""The embedded service with a GPU for each worker: three jobs from submit to their certificates, as figures."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.figures import Figure, record

ONE_GPU = {"workers": 1, "cpus_per_worker": 4, "gpus_per_worker": 1}
SMALL_IMAGES = {"shape": [3, 96, 96], "samples": 256, "val_samples": 64}
JOBS: dict[str, dict[str, Any]] = {
    "demo": {
        "model": {"name": "resnet"},
        "data": {"name": "digits", "batch_size": 64},
        "train": {"epochs": 3},
    },
    "resnet50": {
        "model": {"name": "torchvision/resnet50"},
        "data": {"name": "synthetic", "batch_size": 32, "init_args": SMALL_IMAGES},
        "optimizer": {"name": "sgd", "lr": 0.01, "momentum": 0.9},
        "train": {"steps": 40, "precision": "bf16-mixed", "memory_format": "channels_last", "graph": True},
    },
    "unet": {
        "model": {"name": "unet", "init_args": {"width": 16, "depth": 2}},
        "data": {"name": "digit_scenes", "batch_size": 4},
        "optimizer": {"name": "adam", "lr": 0.005},
        "train": {"epochs": 1},
    },
}


def document(name: str) -> dict[str, Any]:
    return {"name": f"gpu-{name}", "norm": {"kind": "sync_batch"}, "resources": ONE_GPU} | JOBS[name]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", nargs="+", choices=list(JOBS), default=list(JOBS))
    names = parser.parse_args(arguments).jobs

    from syncnorm.service.cli.demo import running_service
    from syncnorm.service.cli.terminal import Screen

    states = []
    with tempfile.TemporaryDirectory() as home, running_service(Path(home), Screen()) as client:
        submitted = {name: client.submit(document(name))["id"] for name in names}
        began = time.monotonic()
        for name, job_id in submitted.items():
            job = client.wait(job_id)
            states.append(job["state"])
            record([Figure("service", f"{name}: not certified", float(job["state"] != "succeeded"), 0.0)])
            print(f"{name}: {job['state']} after {time.monotonic() - began:.0f} s: {job.get('message')}")
            for event in client.events(job_id):
                print(f"  {event['kind']}: {event['message']}")
    return int(any(state != "succeeded" for state in states))


if __name__ == "__main__":
    sys.exit(main())
