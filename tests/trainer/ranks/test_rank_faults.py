"""One rank of a real job goes wrong at a random step: the attempt ends in time, with the right reason, and is gone.

There is no MLflow, as in an outage: waiting for it must not hide what a rank failed of.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import psutil
import pytest

from syncnorm.trainer.storage.attempt_layout import AttemptFolders
from syncnorm.trainer.worker.worker import MLFLOW_PATIENCE_S
from tests.helpers.trainer.on_ray import ROOT, drive

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]

TIMEOUT_S = 10.0

# What the rank does: (reason, what the message says); {rank} is that rank.
FAULTS = {
    "freezes": ("collective_timeout", "rank {rank} ("),
    "leaves": ("user_error", "SystemExit"),
    "raises": ("user_error", "wavelets"),
    "skips the norm": ("user_error", "must take part in the loss"),  # DDP is the first to notice
    "runs twice": ("collective_timeout", "rank"),
}


@pytest.mark.parametrize("draw", range(8))
@pytest.mark.parametrize("how", FAULTS)
def test_attempt_ends_with_the_right_reason(ray_address: str, tmp_path: Path, how: str, draw: int) -> None:
    chance = random.Random(f"{how} {draw}")
    rank, step = chance.randrange(2), chance.randrange(2, 6)
    job = {
        "name": "fault",
        "model": {
            "class_path": "tests.helpers.trainer.own_code.Mistaken",
            "init_args": {"how": how, "ranks": [rank], "step": step},
        },
        "data": {"name": "digits", "batch_size": 32},
        "train": {"steps": 8},
        "resources": {"workers": 2},
        "limits": {"collective_timeout_s": TIMEOUT_S},
    }

    result = drive(ray_address, tmp_path, job, timeout_s=TIMEOUT_S + MLFLOW_PATIENCE_S + 120)

    reason, text = FAULTS[how]
    assert (result.outcome, result.reason) == ("failed", reason), result.message
    assert text.format(rank=rank) in result.message
    ranks = json.loads(AttemptFolders(tmp_path).ranks.read_bytes())
    assert [fact["pid"] for fact in ranks if psutil.pid_exists(fact["pid"])] == []


_SLOW_IMPORT = """
import os, sys, time

class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            try:
                os.close(os.open({once!r}, os.O_CREAT | os.O_EXCL))
                time.sleep({seconds})
            except FileExistsError:
                pass

sys.meta_path.insert(0, Slow())
"""


@pytest.mark.parametrize("module", ["torch", "syncnorm.trainer.worker.worker", "tests.helpers.trainer.own_code"])
def test_rank_whose_imports_take_longer_than_a_collective_may_is_waited_for(
    ray_address: str, tmp_path: Path, module: str
) -> None:
    """torch: before the process group is made; the worker: before the preflight; own_code: after that."""
    path, once = tmp_path / "path", tmp_path / "slept"
    path.mkdir()
    slow = _SLOW_IMPORT.format(module=module, once=str(once), seconds=TIMEOUT_S + 5)
    (path / "sitecustomize.py").write_text(slow)
    job = {
        "name": "slow",
        "model": {"class_path": "tests.helpers.trainer.own_code.OwnLoss"},
        "data": {"name": "digits", "batch_size": 32},
        "train": {"steps": 2},
        "resources": {"workers": 2},
        "limits": {"collective_timeout_s": TIMEOUT_S},
        "env": {"PYTHONPATH": f"{path}:{ROOT}"},
        "export": {"formats": []},
    }

    result = drive(ray_address, tmp_path / "attempt", job)

    assert once.exists()
    trained = [path.name for path in AttemptFolders(tmp_path / "attempt").checkpoints.glob("step-*2")]
    assert trained == ["step-0000000002"], result.message
