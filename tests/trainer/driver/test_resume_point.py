"""An attempt goes on from the checkpoint it was given, or from the newest one before it that is whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from syncnorm.trainer.contract.protocol import Launch
from syncnorm.trainer.contract.spec_reader import read_spec
from syncnorm.trainer.driver.resume_point import resume_point
from syncnorm.trainer.errors import CheckpointCorruptError
from syncnorm.trainer.reporting.reporter import Reporter
from syncnorm.trainer.storage.attempt_layout import AttemptFolders
from syncnorm.trainer.training import checkpoints

SPEC = read_spec({"name": "a", "model": {"name": "mlp"}, "data": {"name": "digits", "batch_size": 4}})


def third_attempt(root: Path, resume_from: Path | None) -> tuple[Launch, AttemptFolders, Any]:
    launch = Launch(
        job_id="j",
        attempt=3,
        fence="f",
        spec=SPEC,
        service_url=None,
        token=None,
        mlflow_uri="",
        mlflow_run_id="",
        resume_from=None if resume_from is None else str(resume_from),
    )
    return launch, AttemptFolders(root / "3"), Reporter(launch, -1)


def write(root: Path, attempt: int, step: int) -> Path:
    folder = root / str(attempt) / "checkpoints"
    folder.parent.mkdir(parents=True, exist_ok=True)
    return checkpoints.write(folder, {"w": torch.ones(9)}, step=step, epoch=0, world_size=2, fence="f").path


def damage(path: Path) -> None:
    (path / checkpoints.STATE).write_bytes(b"half")


def test_the_chosen_checkpoint_is_used(tmp_path: Path) -> None:
    chosen, _ = write(tmp_path, 2, 20), write(tmp_path, 2, 30)

    assert resume_point(*third_attempt(tmp_path, chosen)) == str(chosen)


def test_a_corrupt_choice_falls_back_across_attempts(tmp_path: Path) -> None:
    good, half, chosen = write(tmp_path, 1, 10), write(tmp_path, 2, 20), write(tmp_path, 2, 30)
    damage(half)
    damage(chosen)

    assert resume_point(*third_attempt(tmp_path, chosen)) == str(good)


def test_nothing_whole_is_an_error_not_a_fresh_start(tmp_path: Path) -> None:
    chosen = write(tmp_path, 2, 20)
    damage(chosen)

    with pytest.raises(CheckpointCorruptError, match=r"step-0000000020.*state.pt does not match"):
        resume_point(*third_attempt(tmp_path, chosen))


def test_no_choice_is_a_fresh_start(tmp_path: Path) -> None:
    write(tmp_path, 2, 20)

    assert resume_point(*third_attempt(tmp_path, None)) is None
