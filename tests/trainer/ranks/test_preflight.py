"""What keeps ranks from working together is found before anything is built, and by its name."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from syncnorm.trainer.contract.failure import FailureReason
from syncnorm.trainer.contract.protocol import RankPlacement
from syncnorm.trainer.errors import StorageError, UnreachableError
from syncnorm.trainer.failure_classifier import classify
from syncnorm.trainer.ranks import preflight
from syncnorm.trainer.ranks.preflight import RankFact
from syncnorm.trainer.ranks.stop_agreement import StopAgreement
from syncnorm.trainer.storage.attempt_layout import AttemptFolders
from tests.helpers.norm.pool import Pool
from tests.helpers.trainer.ranks import rank_context
from tests.trainer.conftest import Disk

MEETING_S, COLLECTIVE_S = 60.0, 1.0


def check(rank: int, world_size: int, roots: list[str]) -> float:
    """Each rank looks at a root of its own; the seconds it took."""
    began = time.monotonic()
    preflight.check(AttemptFolders(Path(roots[rank])), rank_context(rank, world_size), "f", 60.0)
    return time.monotonic() - began


def check_late(rank: int, world_size: int, root: str, begins: bool) -> None:
    """Rank 1 is stuck until rank 0 gives up."""
    if rank == 1:
        while not (Path(root) / "given up").exists():
            time.sleep(0.05)
        return
    try:
        if begins:
            preflight.begin(rank_context(rank, world_size), 1.0)
        preflight.check(AttemptFolders(Path(root)), rank_context(rank, world_size), "f", 1.0)
    finally:
        (Path(root) / "given up").touch()


def meet_and_wait(rank: int, world_size: int, root: str) -> float:
    """Rank 1 imports for longer than a collective may take, meets the others, and then stays away from each."""
    if rank == 1:
        time.sleep(1.5 * COLLECTIVE_S)
    preflight.ready(rank_context(rank, world_size), MEETING_S, COLLECTIVE_S)
    agreement = StopAgreement(lambda: None, lambda: False, timeout_s=COLLECTIVE_S)
    gave_up = Path(root) / "gave up"
    if rank == 1:
        while not gave_up.exists():
            time.sleep(0.05)
        return 0.0
    began = time.monotonic()
    try:
        _hears_nothing(lambda: dist.all_reduce(torch.zeros(1)))
        agreement.begin()
        _hears_nothing(agreement.agreed)
    finally:
        gave_up.touch()
    return time.monotonic() - began


def _hears_nothing(wait: Callable[[], object]) -> None:
    with pytest.raises(RuntimeError) as raised:
        wait()
    failure = classify(raised.value, 0)
    assert (failure.reason, failure.secondary) == (FailureReason.COLLECTIVE_TIMEOUT, True)


def test_ranks_may_take_longer_to_meet_than_a_collective(ranks: Pool, tmp_path: Path) -> None:
    waited, _ = ranks.run(meet_and_wait, 2, str(tmp_path))

    assert 2 * COLLECTIVE_S <= waited < 2 * COLLECTIVE_S + 10  # for the all-reduce, and for the agreement on stops


def test_ranks_of_one_storage_pass_quickly_and_are_written_down(ranks: Pool, tmp_path: Path) -> None:
    took = ranks.run(check, 2, [str(tmp_path)] * 2)

    facts = json.loads((tmp_path / "ranks.json").read_text())
    assert [fact["rank"] for fact in facts] == [0, 1]
    assert os.getpid() not in [fact["pid"] for fact in facts]
    assert max(took) < 20
    assert sorted(path.name for path in tmp_path.iterdir()) == ["preflight", "ranks.json"]


def test_a_rank_that_sees_another_storage_is_named_on_all_ranks(ranks: Pool, tmp_path: Path) -> None:
    outcomes = ranks.outcomes(check, 2, [str(tmp_path / "a"), str(tmp_path / "b")])

    for _, error, _ in outcomes:
        assert isinstance(error, StorageError)
        assert "rank 1 on" in str(error)
        assert "rank 0" not in str(error)


def test_a_full_storage_fails_before_anything_is_built(ranks: Pool, small_disk: Disk) -> None:
    small_disk.fill()

    (_, error, _), _ = ranks.outcomes(check, 2, [str(small_disk.folder)] * 2)

    assert classify(error, 0).reason == FailureReason.STORAGE
    assert "0.0 of 8.0 MiB free" in str(error)


def test_room_for_less_than_two_checkpoints_is_refused(small_disk: Disk) -> None:
    folders = AttemptFolders(small_disk.folder)
    preflight.require_disk_space(nn.Linear(100, 100), folders)

    with pytest.raises(
        StorageError, match=r"space for two checkpoints, about 30\.5 MiB, but .* has 8.0 of 8.0 MiB free"
    ):
        preflight.require_disk_space(nn.Linear(1000, 1000), folders)


@pytest.mark.parametrize(("begins", "what"), [(False, "start"), (True, "have data and model")])
def test_a_rank_that_does_not_come_is_named(ranks: Pool, tmp_path: Path, begins: bool, what: str) -> None:
    (_, error, _), _ = ranks.outcomes(check_late, 2, str(tmp_path), begins)

    assert isinstance(error, UnreachableError)
    failure = classify(error, 0)
    assert (failure.reason, failure.secondary) == (FailureReason.COLLECTIVE_TIMEOUT, False)
    assert f"all 2 ranks must {what} within 1 s, but rank 1 did not" in failure.message


def test_a_clock_that_is_off_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        preflight._compare_clocks(
            [
                RankFact(RankPlacement(rank=rank, host="abc"[rank], pid=1), at)
                for rank, at in enumerate((1000.0, 1100.0, 1001.0))
            ]
        )

    assert [record.getMessage() for record in caplog.records] == [
        "the clock of rank 1 on b is 100 s off rank 0's; times in logs and MLflow will be out of order. "
        "Enable NTP on that host."
    ]
