"""From submit to the first optimizer step, and from the last one to the end of the job: a job of the service against a
bare TorchTrainer.fit() of the same network.

Both go to the embedded Ray, in turn, each with it to itself: the bare script as a Ray job, as its users submit one.
Between them the service plans the same job, and so does a process that starts anew, as with SYNCNORM_WARM=0. Then all
again with SYNCNORM_WARM_JOBS=1, where drivers and ranks of ours are forked from a parent.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import psutil
import torch
import torch.distributed as dist
from torch import Tensor, nn

from benchmarks.harness import Row, Table
from syncnorm.service.client.client import Client
from syncnorm.service.integrations.model_inspection import inspect
from syncnorm.service.integrations.ray_jobs import ClusterUnreachableError, RayDispatcher
from syncnorm.service.storage.code_packages import CodePackages
from syncnorm.trainer.contract.spec_reader import read_spec
from syncnorm.trainer.forkserver import launcher

PEER = "bare TorchTrainer.fit()"
OURS = "job of the service"
PLAN = "plan of a class path, against a cold one"
COLD, WARM = "process that starts anew", "warm process"
WHOLE = "submit -> first step over"
GOALS = {(f"warm, {WHOLE}", OURS): 0.2, (WHOLE, OURS): 1.0, (PLAN, WARM): 0.25}
"""Of a plan: 1.5 s, where a process that starts anew takes 6."""
ROUNDS = 5

Stamps = dict[str, float]
"""Seconds since the epoch of: submit, driver, training (Lightning's fit is called), step (the first is over), trained
(the last is over), over (its submitter knows that the job has ended)."""

PHASES = {
    "submit -> driver runs": ("submit", "driver"),
    "driver runs -> fit on rank 0": ("driver", "training"),
    "fit on rank 0 -> first step over": ("training", "step"),
    WHOLE: ("submit", "step"),
    "last step over -> job over": ("trained", "over"),
}


class Stamped(pl.LightningModule):
    """A network that notes when its first optimizer step was over, when it is asked for the next loss, and its last."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.net = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.Conv2d(16, 32, 3, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)),
        )
        self._folder, self._losses = folder, 0

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.net(x)
        return output

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:  # noqa: ARG002
        self._losses += 1
        if self._losses == 2 and dist.get_rank() == 0:
            stamp(self._folder, "step")
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def on_train_end(self) -> None:
        if dist.get_rank() == 0:
            stamp(self._folder, "trained")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def stamp(folder: str, name: str) -> None:
    Path(folder, name).write_text(repr(time.time()))


def stamps(folder: Path) -> Stamps:
    return {path.name: float(path.read_text()) for path in folder.iterdir()}


def bare(folder: str) -> None:
    """The script that somebody writes who has Ray Train and Lightning, and no service."""
    stamp(folder, "driver")
    from ray.train import ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.config import RunConfig

    trainer = TorchTrainer(
        bare_loop,
        train_loop_config={"folder": folder},
        scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(storage_path=f"{folder}-ray", worker_runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}}),  # type: ignore[arg-type]  # typed as the v1 RunConfig
    )
    trainer.fit()


def bare_loop(config: dict[str, Any]) -> None:
    import ray.train
    from ray.train.lightning import RayDDPStrategy, RayLightningEnvironment
    from sklearn.datasets import load_digits
    from torch.utils.data import DataLoader, TensorDataset

    torch.set_num_threads(1)
    digits = load_digits()
    images = torch.tensor(digits.images[:, None] / 16, dtype=torch.float32)
    loader = DataLoader(TensorDataset(images, torch.tensor(digits.target)), batch_size=32, shuffle=True)
    trainer = pl.Trainer(
        accelerator="cpu",
        strategy=RayDDPStrategy(),
        plugins=[RayLightningEnvironment()],
        max_steps=3,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    if ray.train.get_context().get_world_rank() == 0:
        stamp(config["folder"], "training")
    trainer.fit(Stamped(config["folder"]), loader)


def document(folder: Path) -> dict[str, Any]:
    return {
        "name": "first-step",
        "model": {"class_path": "benchmarks.first_step.Stamped", "init_args": {"folder": str(folder)}},
        "data": {"name": "digits", "batch_size": 32},
        "train": {"steps": 3},
        "resources": {"workers": 2},
        "export": {"formats": []},
    }


@dataclass(frozen=True)
class Cluster:
    """ray: its address. warm: the folder of the parent that its jobs are forked from."""

    ray: str
    token: str
    client: Client
    warm: Path | None

    def wait_for_parent(self) -> None:
        """It starts at idle priority, with the first job."""
        assert self.warm is not None
        launcher.start_parent(str(self.warm))  # there is one: this hurries it
        _until((self.warm / launcher.SOCKET).exists, bool)

    def ours(self, folder: Path) -> Stamps:
        submitted = time.time()
        job = self.client.submit(document(folder))
        ended = _until(lambda: self.client.job(job["id"]), lambda ended: ended["finished_at"] is not None)
        over = time.time()
        assert ended["state"] == "succeeded", ended["message"]
        phases = self.client.attempts(job["id"])[0]["phases"]
        began = {name: datetime.fromisoformat(at).timestamp() for name, at in phases.items()}
        known = {"driver": began["preparing"], "training": began["training"], "over": over}
        return {"submit": submitted, **known, **stamps(folder)}

    def plan(self, folder: Path) -> float:
        began = time.perf_counter()
        assert self.client.plan(document(folder))["inspected"]
        return time.perf_counter() - began

    def peer(self, folder: Path) -> Stamps:
        entrypoint = {"attempt": f"{sys.executable} -m benchmarks.first_step"}
        ray = RayDispatcher(self.ray, self.token, entrypoint, owner=folder.name)  # type: ignore[arg-type]  # one kind
        submitted = time.time()
        ray.start(folder.name, str(folder))
        ended = _until(lambda: ray.observe().submissions[folder.name], lambda ended: ended.status.value == "ended")
        over = time.time()
        ray.close()
        found = stamps(folder)
        assert "step" in found, ended.message
        return {"submit": submitted, "over": over, **found}


def cold_plan(folder: Path) -> float:
    """The same inspection, without the service around it."""
    began = time.perf_counter()
    assert inspect(read_spec(document(folder)), CodePackages(str(folder))) is not None
    return time.perf_counter() - began


def _until(look: Callable[[], Any], over: Callable[[Any], bool], timeout_s: float = 300) -> Any:
    deadline = time.monotonic() + timeout_s
    while not over(ended := look()):
        assert time.monotonic() < deadline, f"not over within {timeout_s:g} s: {ended}"
        time.sleep(0.1)
    return ended


def _has_nodes(url: str, token: str) -> bool:
    with closing(RayDispatcher(url, token, owner="nobody")) as dispatcher:
        try:
            return len(dispatcher.observe().nodes) > 0
        except ClusterUnreachableError:
            return False


@contextmanager
def cluster(home: Path, *, warm: bool) -> Iterator[Cluster]:
    """The embedded service with its Ray. warm: that Ray forks drivers and ranks of ours from a parent."""
    environment = os.environ | {
        "SYNCNORM_HOME": str(home),
        "SYNCNORM_ALLOW_CODE": "1",
        "SYNCNORM_WARM_JOBS": str(int(warm)),
        "PYTHONPATH": str(Path(__file__).resolve().parents[1]),  # jobs name classes of this module
    }
    serve = subprocess.Popen(
        [sys.executable, "-m", "syncnorm.service.cli.main", "serve"], env=environment, stdout=subprocess.DEVNULL
    )
    try:
        _until((home / "service.json").exists, bool)
        url, token = _address_of_ray(home), (home / "ray.token").read_text()
        _until(lambda: _has_nodes(url, token), bool)
        with Client(json.loads((home / "service.json").read_text())["url"]) as client:
            yield Cluster(url, token, client, Path((home / "ray.folder").read_text()) / "warm" if warm else None)
    finally:
        serve.terminate()
        serve.wait()


def _address_of_ray(home: Path) -> str:
    """The port is known to the service and its Ray alone."""
    folder = f"--temp-dir={(home / 'ray.folder').read_text()}/ray"
    for process in psutil.process_iter(["cmdline"]):
        if folder in (arguments := process.info["cmdline"] or []):
            (port,) = (one.partition("=")[2] for one in arguments if one.startswith("--dashboard-port="))
            return f"http://127.0.0.1:{port}"
    raise RuntimeError(f"no process runs with {folder}")


def run(rounds: int = ROUNDS) -> Table:
    plans: dict[str, list[float]] = {COLD: [], WARM: []}
    rows: list[Row] = []
    for warm in (False, True):
        times: dict[str, list[Stamps]] = {PEER: [], OURS: []}
        with tempfile.TemporaryDirectory() as root, cluster(Path(root) / "home", warm=warm) as both:
            for number in range(rounds + 1):
                for name, submit in {PEER: both.peer, OURS: both.ours}.items():
                    folder = Path(root) / f"{name.split()[0]}-{number}"
                    folder.mkdir()
                    found = submit(folder)
                    if number > 0:  # the first of each reads files that no other will have to
                        times[name].append(found)
                if warm:
                    both.wait_for_parent()
                    continue
                plan, anew = both.plan(Path(root)), cold_plan(Path(root))
                if number > 0:
                    plans[WARM].append(plan)
                    plans[COLD].append(anew)
        rows += [row for name in PHASES for row in _rows(name, times, "warm, " if warm else "")]
    return Table("first_step", PEER, [*rows, *_compared(PLAN, COLD, plans)])


def _rows(phase: str, times: dict[str, list[Stamps]], kind: str) -> list[Row]:
    began, ended = PHASES[phase]
    took = {name: [each[ended] - each[began] for each in found] for name, found in times.items()}
    return _compared(kind + phase, PEER, took)


def _compared(setting: str, peer: str, took: dict[str, list[float]]) -> list[Row]:
    best, median = min(took[peer]), statistics.median(took[peer])
    return [
        Row(
            setting, name, min(each), statistics.median(each), min(each) / best, statistics.median(each) / median,
            GOALS.get((setting, name)),
        )
        for name, each in took.items()
    ]  # fmt: skip


if __name__ == "__main__":
    bare(sys.argv[1])
