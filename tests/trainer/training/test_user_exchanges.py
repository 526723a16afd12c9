"""Exchanges in a user's own loss, on two real ranks: refused at the first step where the last batch can't take them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from syncnorm.trainer.data.sampler import ShardedBatches
from tests.helpers.norm.pool import Pool
from tests.helpers.trainer.ranks import train


def job(samples: int, what: str = "answers", **data: Any) -> dict[str, Any]:
    shape = {"shape": [1, 8, 8], "samples": samples, "val_samples": 8}
    return {
        "name": "gathers",
        "model": {"class_path": "tests.helpers.trainer.own_code.Gathers", "init_args": {"what": what}},
        "data": {"name": "synthetic", "batch_size": 4, "init_args": shape, **data},
        "train": {"epochs": 2},
        "resources": {"workers": 2},
    }


@pytest.mark.parametrize(
    ("samples", "what"),
    [
        (35, "answers"),  # shares of 2 and 1
        (35, "functional"),
    ],
)
def test_what_the_last_batch_can_not_take_ends_the_first_step(
    ranks: Pool, tmp_path: Path, samples: int, what: str
) -> None:
    document = job(samples, what, last_batch="weight") | {"norm": {"kind": "group"}}
    outcomes = ranks.outcomes(train, 2, str(tmp_path), document)

    assert [ok for ok, _, _ in outcomes] == [False, False]
    assert all("Leave data.last_batch out" in str(outcome) for outcome in outcomes), outcomes
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.parametrize(
    "document",
    [
        job(35),  # padded: every worker has as many
        job(33),
        job(36, last_batch="weight"),  # shares of 2 and 2
        job(35, last_batch="drop"),
        job(35, "loss", last_batch="weight"),  # one number a rank, however many samples
    ],
)
def test_what_every_batch_can_take_trains(ranks: Pool, tmp_path: Path, document: dict[str, Any]) -> None:
    first, second = ranks.run(train, 2, str(tmp_path), document)

    assert first.stopped_at is second.stopped_at is None


def test_share_without_a_sample_is_refused(ranks: Pool, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^data.last_batch: weight leaves a worker without a sample"):
        ranks.run(train, 2, str(tmp_path), job(33, last_batch="weight"))


@pytest.mark.parametrize(
    ("samples", "workers", "last_batch", "shares"),
    [(36, 2, "weight", None), (35, 2, "weight", [2, 1]), (33, 2, "weight", [1, 0]), (35, 2, "drop", None)],
)
def test_shares_of_the_last_batch(samples: int, workers: int, last_batch: Any, shares: list[int] | None) -> None:
    batches = ShardedBatches(samples, global_batch=8, world_size=workers, last_batch=last_batch)

    assert batches.uneven_shares() == shares
