"""Ranks stop at the same batch, soon after one of them is asked to, and exchange little where batches are short."""

from __future__ import annotations

from types import SimpleNamespace
from unittest import mock

import pytest
import torch.distributed as dist

from syncnorm.trainer.contract.protocol import StopRequest
from syncnorm.trainer.errors import SupersededError
from syncnorm.trainer.ranks import stop_agreement
from syncnorm.trainer.ranks.stop_agreement import EVERY_S, MOST_WITHOUT, StopAgreement
from tests.helpers.norm.pool import Pool

ASKED_AT = 50


def ended(rank: int, world_size: int, batch_s: list[float], superseded: bool) -> tuple[int, int, str]:
    """The batch after which this rank ends, its exchanges until then, and what it heard. Rank 1 is asked."""
    batches = 0
    clock = SimpleNamespace(monotonic=lambda: batches * batch_s[rank])

    def asked() -> bool:
        return rank == 1 and batches >= ASKED_AT

    def requested() -> StopRequest | None:
        return "pause" if asked() else None

    agreement = StopAgreement(requested, lambda: superseded and asked(), timeout_s=60)
    with (
        mock.patch.object(stop_agreement, "time", clock),
        mock.patch.object(dist, "all_reduce", wraps=dist.all_reduce) as exchange,
    ):
        while batches < 10 * ASKED_AT:
            agreement.begin()
            batches += 1
            try:
                found = agreement.agreed()
            except SupersededError:
                found = "superseded"
            if found:
                break
    return batches, exchange.call_count, str(found)


@pytest.mark.parametrize("superseded", [False, True])
def test_ranks_stop_at_the_same_batch_soon_after_one_is_asked(ranks: Pool, superseded: bool) -> None:
    ends = ranks.run(ended, 2, [EVERY_S / 20, EVERY_S / 20], superseded)

    assert len({batches for batches, _, _ in ends}) == 1
    assert ASKED_AT < ends[0][0] <= ASKED_AT + MOST_WITHOUT + 1
    assert {found for _, _, found in ends} == {"superseded" if superseded else "pause"}


def test_short_batches_share_an_exchange(ranks: Pool) -> None:
    for batches, exchanges, _ in ranks.run(ended, 2, [EVERY_S / 20, EVERY_S / 20], False):
        assert exchanges < batches / 2


def test_a_rank_with_long_batches_lets_all_exchange_at_each(ranks: Pool) -> None:
    for batches, exchanges, _ in ranks.run(ended, 2, [EVERY_S / 20, 1.5 * EVERY_S], False):
        assert batches == exchanges == ASKED_AT + 1


def test_one_process_looks_at_its_own_requests_at_each_batch() -> None:
    requests: list[StopRequest | None] = [None, "cancel"]
    agreement = StopAgreement(lambda: requests.pop(0), lambda: False, timeout_s=60)

    agreement.begin()
    assert agreement.agreed() is None
    agreement.begin()
    assert agreement.agreed() == "cancel"
