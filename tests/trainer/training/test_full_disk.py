"""A disk that is full: the job fails cleanly as `storage`, and what was whole before stays whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ray.train import WorkerGroupError

from syncnorm.trainer.contract.failure import FailureReason
from syncnorm.trainer.contract.protocol import Launch, Result
from syncnorm.trainer.contract.spec_reader import read_spec
from syncnorm.trainer.driver import main
from syncnorm.trainer.errors import RankFailedError, StorageError
from syncnorm.trainer.export.formats import export
from syncnorm.trainer.export.forward_inputs import ForwardInputs
from syncnorm.trainer.export.weights import write_weights
from syncnorm.trainer.failure_classifier import classify
from syncnorm.trainer.storage.attempt_layout import AttemptFolders
from syncnorm.trainer.training import checkpoints
from tests.helpers.norm.pool import Pool
from tests.helpers.trainer.ranks import RecordingReporter, train
from tests.trainer.conftest import Disk

LARGE = torch.randn(500_000)  # 2 MB
DOCUMENT: dict[str, Any] = {
    "name": "full",
    "model": {"name": "mlp", "init_args": {"hidden": [64]}},
    "data": {"name": "digits", "batch_size": 180},
    "train": {"steps": 10, "checkpoint_every": {"steps": 2}},
    "resources": {"workers": 2},
}


class FillsTheDisk(RecordingReporter):
    """Fills the disk of the job as soon as it has a checkpoint of step 4."""

    def __init__(self, disk: Disk) -> None:
        super().__init__()
        self._disk = disk

    def checkpoint(self, *, step: int, **_: object) -> None:
        if step == 4:
            self._disk.fill()


def checkpoint(folder: Path, step: int) -> None:
    checkpoints.write(folder, {"w": LARGE + step}, step=step, epoch=0, world_size=1, fence="f")


def launch() -> Launch:
    known = {"job_id": "j", "attempt": 1, "fence": "f", "spec": read_spec(DOCUMENT), "mlflow_uri": ""}
    none = dict.fromkeys(("service_url", "token", "resume_from"))
    return Launch.model_validate({**known, **none, "mlflow_run_id": ""})


@pytest.mark.parametrize("leave_bytes", [0, 4096, 100_000, 1_900_000])
def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(small_disk: Disk, leave_bytes: int) -> None:
    checkpoint(small_disk.folder, 1)
    small_disk.fill(leave_bytes=leave_bytes)

    with pytest.raises(
        StorageError, match=r"step 2 could not be written to .* \(.* of 8.0 MiB free\): .*No space left"
    ):
        checkpoint(small_disk.folder, 2)

    newest = checkpoints.newest([small_disk.folder])
    assert newest is not None
    assert torch.equal(checkpoints.load(newest.path)["w"], LARGE + 1)
    assert sorted(path.name for path in small_disk.folder.iterdir()) == ["ballast", "step-0000000001"]


def test_a_storage_that_has_gone_is_not_taken_for_missing_data(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(StorageError, match="Not a directory") as raised:
        checkpoint(tmp_path / "file" / "checkpoints", 1)

    assert classify(raised.value, rank=0).reason == FailureReason.STORAGE


@pytest.mark.filterwarnings("ignore")  # the exporters warn about their own internals
@pytest.mark.parametrize("fmt", ["weights", "pt2", "onnx"])
def test_an_export_that_does_not_fit_is_a_matter_of_storage(small_disk: Disk, fmt: str) -> None:
    network = torch.nn.Linear(700, 1000).eval()
    small_disk.fill(leave_bytes=1_000_000)

    with pytest.raises(OSError, match="No space left on device") as raised:
        if fmt == "weights":
            write_weights(network, {}, small_disk.folder)
        else:
            export(network, ForwardInputs((torch.randn(2, 700),)), [fmt], small_disk.folder)

    assert classify(raised.value, rank=0).reason == FailureReason.STORAGE


def test_a_job_fails_as_storage_and_goes_on_once_there_is_room(ranks: Pool, small_disk: Disk, tmp_path: Path) -> None:
    first, second = small_disk.folder / "1", tmp_path / "2"
    whole = ranks.run(train, 2, str(tmp_path / "whole"), DOCUMENT)[0]

    outcomes = ranks.outcomes(train, 2, str(first), DOCUMENT, None, FillsTheDisk(small_disk))
    small_disk.empty()
    newest = checkpoints.newest([first / "checkpoints"])
    assert newest is not None
    resumed = ranks.run(train, 2, str(second), DOCUMENT, str(newest.path))[0]

    failures = [classify(error, rank) for rank, (_, error, _) in enumerate(outcomes)]
    assert (failures[0].reason, failures[0].secondary) == (FailureReason.STORAGE, False)
    assert failures[1].secondary
    assert newest.step == 4
    assert all(torch.equal(tensor, resumed.state[name]) for name, tensor in whole.state.items())


def test_the_reason_arrives_where_not_even_a_word_can_be_written(small_disk: Disk) -> None:
    folders = AttemptFolders(small_disk.folder)
    small_disk.fill()
    failure = classify(StorageError("no room for a checkpoint"), rank=0)
    lost = WorkerGroupError("", {0: RankFailedError(failure.model_dump_json())})

    cause = main._why(launch(), folders, lost)
    kept = main._keep(main._failed(launch(), cause), launch(), folders)

    assert kept.reason == FailureReason.STORAGE
    assert "no room for a checkpoint" in kept.message


def test_a_success_that_nobody_could_read_is_none(small_disk: Disk) -> None:
    small_disk.fill()

    kept = main._keep(Result(fence="f", outcome="succeeded"), launch(), AttemptFolders(small_disk.folder))

    assert (kept.outcome, kept.reason) == ("failed", FailureReason.STORAGE)
