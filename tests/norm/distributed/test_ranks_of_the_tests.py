"""The ranks that tests run on: one that fails at once doesn't keep another from joining."""

from __future__ import annotations

from tests.helpers.norm.pool import Pool


def _fail(rank: int, world_size: int) -> None:
    raise ValueError(f"rank {rank} of {world_size}")


def test_ranks_that_fail_at_once_have_all_met_before(ranks: Pool) -> None:
    for _ in range(40):  # without the barrier of the pool the fifth call fails, and all after it
        outcomes = ranks.outcomes(_fail, 2)

        assert [str(error) for _, error, _ in outcomes] == ["rank 0 of 2", "rank 1 of 2"]
